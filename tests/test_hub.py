"""Publishing and loading weights, with the Hub's real client over HTTP on 127.0.0.1."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from randwire_zoo.cli import main
from randwire_zoo.training import train
from randwire_zoo.weights_io import read_metadata, save_weights

NAME, TOKEN, REPO = 'randwire_ws_pico', 'hf_test_token', 'someone/pico'

# Runs commands and code in one process of the client's own, and says as JSON what came of each.
CLIENT = '''
import contextlib, hashlib, io, json, sys
import timm, torch
from randwire_zoo.cli import main

def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return {'code': code, 'out': out.getvalue(), 'err': err.getvalue()}

def logits(name, **kwargs):
    """Two sums of the logits of a fixed batch, as exact text; or the error's type and message."""
    try:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=True, **kwargs).eval()
    except Exception as error:
        return [type(error).__name__, str(error)]
    batch = torch.randn(2, kwargs.get('in_chans', 3), 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model(batch) if kwargs.get('num_classes', 10) == 10 else model.forward_features(batch)
    return hashlib.sha256(output.numpy().tobytes()).hexdigest()

results = []
'''


def run(server: HubServer, home: Path, code: str, token: str | None = TOKEN, **variables: str) -> list[Any]:
    """Run code that appends to `results` in a process whose Hub is the server."""
    done = subprocess.run(
        [sys.executable, '-c', f'{CLIENT}\n{code}\nprint(json.dumps(results))'],
        env=server.environment(home, token, OMP_NUM_THREADS='1', **variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, cwd=home.parent)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def hub(server: HubServer, home: Path, *commands: list[object], **options: Any) -> list[dict[str, Any]]:
    """Run commands of `randwire-zoo hub` one after the other."""
    lines = [f'results.append(command("hub", *{json.dumps([str(part) for part in command])}))' for command in commands]
    return run(server, home, '\n'.join(lines), **options)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training with a moving average, on images of noise in ten classes."""
    root, rng = tmp_path_factory.mktemp('training'), np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in range(10):
            (root / 'noise' / split / str(label)).mkdir(parents=True)
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'noise' / split / str(label) / '0.png')
    train('digits/randwire_ws_pico', data_dir=str(root / 'noise'), epochs=2, warmup_epochs=0, batch_size=10, workers=0,
          output=str(root), experiment='run', device='cpu', model_ema=True, progress=False, val_split='validation')
    return root / 'run'


@pytest.fixture(scope='module')
def staged_once(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('staged') / 'folder'
    assert main(['hub', 'stage', str(trained / 'last.pth.tar'), '--tag', 'noise', '--license', 'mit', '-o',
                 str(folder)]) == 0
    return folder


@pytest.fixture
def staged(staged_once: Path, tmp_path: Path) -> Path:
    """A staged folder of the test's own."""
    return Path(shutil.copytree(staged_once, tmp_path / 'staged'))


def test_a_staged_folder_has_everything_and_no_pickle_nor_place_on_this_machine(
        staged: Path, trained: Path) -> None:
    assert sorted(path.name for path in staged.iterdir()) == [
        'README.md', 'args.yaml', 'config.json', 'curves.png', 'graphs.json', 'model.safetensors', 'summary.csv',
        'wiring.png']
    for name in ('README.md', 'args.yaml', 'config.json', 'graphs.json', 'summary.csv'):
        text = (staged / name).read_text()
        assert str(trained.parent) not in text and TOKEN not in text
    assert yaml.safe_load((staged / 'args.yaml').read_text())['data_dir'] == 'noise'
    ema = torch.load(trained / 'last.pth.tar', weights_only=False)['state_dict_ema']
    weights = load_file(staged / 'model.safetensors')
    assert all(torch.equal(tensor, ema[name]) for name, tensor in weights.items())


def test_the_data_folder_of_timms_positional_argument_is_no_place_on_the_machine_either(
        trained: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / 'args.yaml').read_text())
    settings['data'] = settings.pop('data_dir')
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert main(['hub', 'stage', str(trained / 'last.pth.tar'), '--tag', 'noise', '--license', 'mit', '--recipe',
                 str(tmp_path / 'args.yaml'), '-o', str(tmp_path / 'out')]) == 0
    assert str(trained.parent) not in (tmp_path / 'out' / 'args.yaml').read_text()
    assert ModelCard.load(tmp_path / 'out' / 'README.md').data.datasets == ['noise']  # type: ignore[attr-defined]


def test_without_ema_the_trained_weights_are_staged(trained: Path, tmp_path: Path) -> None:
    assert main(['hub', 'stage', str(trained / 'last.pth.tar'), '--tag', 'noise', '--license', 'mit', '--no-ema', '-o',
                 str(tmp_path / 'raw')]) == 0
    state = torch.load(trained / 'last.pth.tar', weights_only=False)['state_dict']
    assert all(torch.equal(tensor, state[name])
               for name, tensor in load_file(tmp_path / 'raw' / 'model.safetensors').items())
    # And a safetensors file that says its epoch is staged as well.
    shutil.copy(tmp_path / 'raw' / 'model.safetensors', tmp_path / 'weights.safetensors')
    assert main(['hub', 'stage', str(tmp_path / 'weights.safetensors'), '--tag', 'noise', '--license', 'mit', '-o',
                 str(tmp_path / 'again'), '--recipe', str(trained / 'args.yaml'), '--summary',
                 str(trained / 'summary.csv')]) == 0


def test_the_card_reads_back_and_shows_what_was_recorded(staged: Path) -> None:
    card: Any = ModelCard.load(staged / 'README.md')
    metadata = read_metadata(staged / 'model.safetensors')
    metrics = json.loads(metadata['metrics'])
    assert card.data.license == 'mit' and card.data.library_name == 'timm' and card.data.datasets == ['noise']
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        'top-1 accuracy, %': metrics['top1'], 'top-5 accuracy, %': metrics['top5']}
    params = sum(tensor.numel() for name, tensor in load_file(staged / 'model.safetensors').items()
                 if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked', '_extra_state')))
    for text in (metadata['graphs_sha256'], 'WS(4,0.75), seed 1', f'{params:,}', '@inproceedings', 'features_only=True',
                 f'build_{NAME}_fpn_backbone', '2 of 2'):
        assert text in card.content, text


@pytest.mark.parametrize('key', ['val_split', 'epochs'])
def test_a_value_that_is_recorded_nowhere_is_an_error(
        key: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((trained / 'args.yaml').read_text())
    del settings[key]
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert main(['hub', 'stage', str(trained / 'last.pth.tar'), '--tag', 'noise', '--license', 'mit', '--recipe',
                 str(tmp_path / 'args.yaml'), '-o', str(tmp_path / 'out')]) == 1
    assert key in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['args.yaml']


@pytest.mark.parametrize(('arguments', 'code', 'message'), [
    (['nowhere.pth.tar', '--tag', 'a', '--license', 'mit'], 2, 'no file at nowhere.pth.tar'),
    (['{run}/last.pth.tar', '--tag', 'a b', '--license', 'mit'], 2, '--tag must be letters, digits and _'),
    (['{run}/last.pth.tar', '--tag', 'a', '--license', 'mit', '--summary', 'nowhere.csv'], 2, 'no file at nowhere.csv'),
    (['{run}/last.pth.tar', '--tag', 'a', '--license', 'mit', '--model', 'randwire_ws_c109'], 1,
     'is of a training of randwire_ws_pico, not of randwire_ws_c109'),
    (['{run}/last.pth.tar', '--tag', 'a', '--license', 'mit', '-o', '{run}'], 2, 'exists; choose another --output'),
    (['{run}/last.pth.tar', '--license', 'mit'], 2, '--tag'),
    (['hostile.pth.tar', '--tag', 'a', '--license', 'mit', '--recipe', '{run}/args.yaml', '--summary',
      '{run}/summary.csv'], 2, 'hostile.pth.tar cannot be loaded'),
])
def test_stage_says_in_one_line_what_is_wrong_and_writes_nothing(
        arguments: list[str], code: int, message: str, trained: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / 'ran',))

    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': Code(), 'epoch': 0}, 'hostile.pth.tar')
    assert main(['hub', 'stage', *[argument.format(run=trained) for argument in arguments]]) == code
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['hostile.pth.tar']


def _edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """A change of the tensors by someone who also corrects the hash of the tensors in the metadata."""
    def edit(folder: Path) -> None:
        from randwire_zoo.weights_io import _tensors_sha256

        path = folder / 'model.safetensors'
        metadata, state = read_metadata(path), load_file(path)
        change(state)
        save_file(state, path, {**metadata, 'tensors_sha256': _tensors_sha256(state)})
    return edit


def _set_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / 'config.json').read_text())
        config.update(values)
        config['model_args'].pop('num_classes' if 'num_classes' in values else '', None)
        (folder / 'config.json').write_text(json.dumps(config))
    return edit


def _flip(folder: Path) -> None:
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(data)


def _other_graphs(folder: Path) -> None:
    from randwire_zoo.frozen import load_graphs

    (folder / 'graphs.json').write_text(json.dumps([g.to_dict() for g in load_graphs('randwire_ws_small_s1')]))


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return edit


@pytest.mark.parametrize(('damage', 'message'), [
    (_set_config(architecture='randwire_ws_small_s1'), 'other wiring'),
    (_set_config(architecture='resnet18'), "'resnet18' is no name of the zoo"),
    (_set_config(num_classes=7), 'size mismatch for fc.weight'),
    (_edit(lambda state: state.pop('conv4.nodes.2.bn.bias')), 'Missing key(s) in state_dict: "conv4.nodes.2.bn.bias"'),
    (_edit(lambda state: state.update({'conv9.weight': torch.zeros(1)})), 'Unexpected key(s)'),
    (_edit(lambda state: state['fc.bias'].fill_(float('nan'))), 'not all values are finite: fc.bias'),
    (_edit(lambda state: state['conv3._extra_state'].add_(1)), 'other wiring'),
    (_flip, 'has been altered: its tensors have sha256'),
    (_other_graphs, 'have different wirings'),
    (_replace('summary.csv', '\n1,', '\n7,'), 'has no epoch 1, which'),
    (_replace('config.json', '"tag": "noise"', '"tag": "in1k"'), "has the tag 'in1k'"),
    (lambda folder: (folder / 'pytorch_model.bin').write_bytes(b'x'), 'only safetensors are published'),
    (lambda folder: (folder / 'args.yaml').unlink(), 'lacks args.yaml'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_folder_that_is_not_what_it_says_is_refused_before_anything_is_sent(
        damage: Callable[[Path], None], message: str, staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(staged)
    assert main(['hub', 'push', str(staged), REPO, '--dry-run']) == 1
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1


def test_metrics_must_be_those_of_the_summary(staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (staged / 'summary.csv').read_text().splitlines()
    header, last = rows[0].split(','), rows[-1].split(',')
    last[header.index('eval_top1')] = '99.99'
    (staged / 'summary.csv').write_text('\n'.join([*rows[:-1], ','.join(last)]) + '\n')
    assert main(['hub', 'push', str(staged), REPO, '--dry-run']) == 1
    assert "the weights record {'top1': " in capsys.readouterr().err


def test_push_then_every_way_of_loading_gives_the_same_bits(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    dry, first, again = hub(server, home, ['push', staged, REPO, '--dry-run'], ['push', staged, REPO],
                            ['push', staged, REPO])
    assert dry['code'] == first['code'] == again['code'] == 0 and dry['out'] == ''
    row, = json.loads(first['out']).values()
    assert first['out'] == again['out'] and server.commits(REPO)[1:] == [row['revision']]
    assert list(server.tags(REPO).values()) == [row['revision']]
    served = server.files(REPO)
    assert {name: data for name, data in served.items() if name != '.gitattributes'} == {
        path.name: path.read_bytes() for path in staged.iterdir()}
    assert not any(TOKEN.encode() in data for data in served.values())

    (tmp_path / 'row.json').write_text(first['out'])
    overlay = tmp_path / 'weights.json'
    added, = hub(server, home, ['manifest', 'add', tmp_path / 'row.json', '--manifest', overlay])
    assert added['code'] == 0
    sources = [NAME, f'{NAME}.noise', f'hf-hub:{REPO}@{row["revision"]}', f'local-dir:{staged}']
    code = '\n'.join(f'results.append([logits({source!r}, **kwargs) for kwargs in ({{}}, dict(num_classes=3), '
                     f'dict(in_chans=1))])' for source in sources)
    fresh = tmp_path / 'fresh'
    results = run(server, fresh, code, RANDWIRE_ZOO_WEIGHTS=str(overlay))
    assert all(len(digest) == 64 for digest in results[0]) and all(result == results[0] for result in results)
    assert results[0][0] != run(server, fresh, f'results.append(logits({NAME + ".digits"!r}))')[0]

    # Cached: no request at all, with the network and without.
    start = len(server.log)
    code = f'results.append(logits({NAME!r}))\nresults.append(command("hub", "pull", {NAME!r}))'
    for variables in ({}, {'HF_HUB_OFFLINE': '1'}):
        digest, pulled = run(server, fresh, code, RANDWIRE_ZOO_WEIGHTS=str(overlay), **variables)
        assert digest == results[0][0] and pulled['code'] == 0
    assert server.log[start:] == []

    verified = hub(
        server, home, ['verify', NAME], ['verify', f'{REPO}@{row["revision"]}'], ['manifest', 'check', '--online'],
        ['pull', REPO, '-o', tmp_path / 'copy.safetensors'], ['manifest', 'list'], RANDWIRE_ZOO_WEIGHTS=str(overlay))
    assert [result['code'] for result in verified] == [0] * 5, verified
    assert (tmp_path / 'copy.safetensors').read_bytes() == (staged / 'model.safetensors').read_bytes()
    assert f'{REPO}@{row["revision"]}' in verified[-1]['out']


def test_a_flipped_byte_is_refused_by_every_way_of_loading_and_both_hashes_are_named(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    pushed, = hub(server, tmp_path / 'home', ['push', staged, REPO])
    overlay = tmp_path / 'weights.json'
    overlay.write_text(pushed['out'])
    row, = json.loads(pushed['out']).values()
    server.flip_byte(REPO, 'model.safetensors')
    created, pulled, by_repo, verified = run(
        server, tmp_path / 'fresh', f'results.append(logits({NAME!r}))\n' + '\n'.join(
            f'results.append(command("hub", {part}))' for part in (
                f'"pull", {NAME!r}', f'"pull", {REPO!r}', f'"verify", {NAME!r}')), RANDWIRE_ZOO_WEIGHTS=str(overlay))
    assert created[0] == 'ValueError' and f'{NAME}.noise ({REPO}@{row["revision"]}) has been altered' in created[1]
    assert created[1].count(row['sha256']) == 1 and 'has sha256' in created[1]
    for result in (pulled, by_repo, verified):
        assert result['code'] == 1 and 'altered' in result['err'] and result['err'].count('\n') == 1
    pushed, = hub(server, tmp_path / 'home', ['push', staged, REPO])
    assert pushed['code'] == 1 and 'has been altered' in pushed['err']


@pytest.mark.parametrize('kwargs', [{}, {'num_classes': 3}, {'features_only': True}])
def test_a_missing_tensor_is_noticed_by_timm_for_any_number_of_classes(kwargs: dict[str, Any], staged: Path) -> None:
    _edit(lambda state: state.pop('conv4.nodes.2.bn.bias'))(staged)
    with pytest.raises(ValueError, match=r'these weights lack conv4\.nodes\.2\.bn\.bias$'):
        timm.create_model(f'local-dir:{staged}', pretrained=True, **kwargs)


def test_push_and_the_hubs_refusals(server: HubServer, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    other, = hub(server, home, ['push', staged, 'else/pico'])
    assert other['code'] == 3 and 'else/pico: the token may not do this' in other['err']
    bad, = hub(server, home, ['push', staged, REPO], token='hf_wrong')
    assert bad['code'] == 3 and 'the Hub does not accept the token' in bad['err']
    none, = hub(server, home, ['push', staged, REPO], token=None)
    assert none['code'] == 3 and 'there is no token; set HF_TOKEN' in none['err']
    assert server.repositories() == []
    server.moves_before_commit = 1
    stale, dry = hub(server, home, ['push', staged, REPO], ['push', staged, REPO, '--dry-run'])
    assert stale['code'] == 3 and 'its head has moved since this began' in stale['err']
    assert 'model.safetensors' not in server.files(REPO)
    tag = dry['err'].split('tag the commit ')[1].split()[0]
    server.tag(REPO, tag)
    taken, = hub(server, home, ['push', staged, REPO])
    assert taken['code'] == 1 and f'the tag {tag} is at' in taken['err'] and 'never moved' in taken['err']
    assert server.tags(REPO)[tag] != server.commits(REPO)[-1]


def test_a_dry_run_and_a_server_that_dies_before_the_commit_leave_the_repository_as_it_was(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    server.create(REPO, {'README.md': b'old'})
    before = server.files(REPO)
    dry, = hub(server, tmp_path / 'home', ['push', staged, REPO, '--dry-run'])
    assert dry['code'] == 0 and server.log == []
    server.die_before_commit = True
    died, = hub(server, tmp_path / 'home', ['push', staged, REPO])
    assert died['code'] == 3 and died['err'].count('randwire-zoo: error: ') == 1
    server.start()
    assert server.files(REPO) == before
    pushed, = hub(server, tmp_path / 'home', ['push', staged, REPO])
    assert pushed['code'] == 0 and len(server.commits(REPO)) == 2


def test_what_cannot_be_had_is_named_with_its_cause(server: HubServer, staged: Path, tmp_path: Path) -> None:
    home, weights = tmp_path / 'home', (staged / 'model.safetensors').read_bytes()
    server.create('someone/empty', {'README.md': b'x'})
    server.create('someone/gated', {'model.safetensors': weights}, gated=True)
    server.create('someone/private', {'model.safetensors': weights}, private=True)
    targets = ['someone/nowhere@main', 'someone/empty@main', f'someone/empty@{"0" * 40}', 'someone/gated@main',
               'someone/private@main']
    results = hub(server, home, *(['pull', target] for target in targets), token=None)
    causes = ['not published', 'the repository has no model.safetensors', 'no such revision', 'the repository is gated',
              'not published']
    for target, result, cause in zip(targets, results, causes, strict=True):
        assert result['code'] == 3 and f'{target}: ' in result['err'] and cause in result['err'], result
        assert result['err'].count('\n') == 1
    usage = hub(server, home, ['pull', 'randwire_ws_c109'], ['verify', 'nothing'], ['pull', 'a/b/c@d'],
                ['manifest', 'add'])
    assert [result['code'] for result in usage] == [2, 2, 2, 2]


def test_broken_downloads_end_in_one_line_or_in_the_whole_file(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    commit = server.create(REPO, {'model.safetensors': (staged / 'model.safetensors').read_bytes()})
    home, target = tmp_path / 'home', f'{REPO}@{commit}'
    server.cut_downloads = 100
    cut, = hub(server, home, ['pull', target])
    assert cut['code'] == 3 and target in cut['err'] and cut['err'].splitlines()[-1].startswith('randwire-zoo: error: ')
    server.cut_downloads = 0
    server.short_bodies = 100
    short, = hub(server, home, ['pull', target])
    assert short['code'] == 3 and target in short['err']
    server.short_bodies = 0
    server.cut_downloads = 1
    whole, = hub(server, home, ['pull', target])
    assert whole['code'] == 0 and Path(whole['out'].strip()).read_bytes() == (staged / 'model.safetensors').read_bytes()


def test_without_a_network_the_error_says_what_was_wanted_and_how_long_it_was_tried(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    row = {'sha256': '0' * 64, 'size': 1, 'num_classes': 10, 'license': 'mit', 'repo_id': REPO, 'revision': '1' * 40,
           'graphs_sha256': read_metadata(staged / 'model.safetensors')['graphs_sha256']}
    overlay = tmp_path / 'weights.json'
    overlay.write_text(json.dumps({f'{NAME}.noise': row}))
    code = f'results.append(logits({NAME!r}))'
    offline, = run(server, tmp_path / 'home', code, RANDWIRE_ZOO_WEIGHTS=str(overlay), HF_HUB_OFFLINE='1')
    what = f'{NAME}.noise ({REPO}@{"1" * 40}): it is not in the cache, and '
    assert offline == ['HubError', what + 'HF_HUB_OFFLINE is set']
    server.stop()
    refused, = run(server, tmp_path / 'home', code, RANDWIRE_ZOO_WEIGHTS=str(overlay))
    assert refused[0] == 'HubError'
    assert refused[1].startswith(f'{what}{server.url} could not be reached (gave up after ')


def test_a_safetensors_file_without_its_epoch_is_not_staged(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(timm.create_model(NAME), tmp_path / 'weights.safetensors')
    assert main(['hub', 'stage', str(tmp_path / 'weights.safetensors'), '--tag', 'noise', '--license', 'mit',
                 '--recipe', str(trained / 'args.yaml'), '--summary', str(trained / 'summary.csv'), '-o',
                 str(tmp_path / 'out')]) == 1
    assert 'does not say of which epoch it is' in capsys.readouterr().err
