"""The command line says what is so, and every mistake of a user ends in one line on stderr and exit code 2."""
from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pytest
import timm
from PIL import Image
from safetensors import SafetensorError

import randwire_zoo
from randwire_zoo import cli
from randwire_zoo.drawing import DARK, LIGHT
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import parse_graph_model, sample_graphs
from randwire_zoo.models import ARCHITECTURES

SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """Run a command that must succeed without a word on stderr, and return the lines that it prints."""
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    return out.splitlines()


def fail(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail as a mistake of the user does, and return its message."""
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, '')
    assert err.startswith('randwire-zoo: error: ') and err.endswith('\n') and err.count('\n') == 1
    return err


def test_list_shows_every_frozen_name_with_the_size_of_the_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, 'list')
    assert sorted(line.split()[0] for line in lines[2:]) == sorted(ARCHITECTURES)
    row = next(line.split() for line in lines if line.startswith('randwire_ws_c109_s2 '))
    model = timm.create_model('randwire_ws_c109_s2', device='meta')
    params = sum(parameter.numel() for parameter in model.parameters())
    assert row[1:8] == ['ws(4,0.75)', '2', 'regular', '32', '109', '224', f'{params / 1e6:.2f}']
    assert next(line.split() for line in lines if line.startswith('randwire_ws_pico '))[-1] == 'digits'


def test_list_filters_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads('\n'.join(run(capsys, 'list', '--filter', '*er_small*', '--json')))
    assert [row['name'] for row in rows] == [f'randwire_er_small_s{seed}' for seed in range(1, 6)]
    assert {row['graph'] for row in rows} == {'er(0.2)'}


def test_list_counts_what_the_packaged_figures_lack_and_gets_the_same(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = run(capsys, 'list', '--filter', '*pico', '--json')
    monkeypatch.setattr(cli, 'COMPLEXITY', tmp_path / 'none.json')
    assert run(capsys, 'list', '--filter', '*pico', '--json') == read
    rewired = {'randwire_ws_pico': {'graphs_sha256': '0' * 64, 'params': 1, '64': {'macs': 1, 'activations': 1}}}
    (tmp_path / 'none.json').write_text(json.dumps(rewired))  # figures of another wiring are not believed
    assert run(capsys, 'list', '--filter', '*pico', '--json') == read


def test_info_counts_nodes_edges_inputs_sinks_and_depth_as_networkx_does(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, 'info', 'randwire_ws_pico', '--img-size', '32')
    assert lines[0] == 'randwire_ws_pico'
    assert any(line.split() == ['multiply-adds', 'at', '32×32', f'{2535872 // 4 + 9600:,}'] for line in lines)
    for stage, graph in zip(('conv3', 'conv4', 'conv5'), load_graphs('randwire_ws_pico'), strict=True):
        reference = graph.to_networkx()
        row = next(line.split() for line in lines if line.startswith(stage))
        assert row[1:6] == [str(number) for number in (
            reference.number_of_nodes(), reference.number_of_edges(), len(graph.inputs), len(graph.outputs),
            len(nx.dag_longest_path(reference)))]
        assert graph.sha256.startswith(row[6])


def test_the_line_that_info_prints_creates_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, 'info', 'er(0.3)', '--seed', '7', '--num-nodes', '6', '--channels', '8', '--img-size', '32')
    line = next(line.split(None, 1)[1] for line in lines if line.startswith('create '))
    call = ast.parse(line, mode='eval').body
    assert isinstance(call, ast.Call) and ast.unparse(call.func) == 'timm.create_model'
    model = timm.create_model(*map(ast.literal_eval, call.args), **{  # type: ignore[arg-type]
        keyword.arg or '': ast.literal_eval(keyword.value) for keyword in call.keywords})
    assert model.graphs == sample_graphs(parse_graph_model('er(0.3)'), (6, 6, 6), 7)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert any(line.split() == ['params', f'{params:,}'] for line in lines)


def test_draw_writes_a_png_and_an_svg_of_the_named_graphs(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, 'draw', 'randwire_ws_pico') == ['randwire_ws_pico.png', 'randwire_ws_pico.svg']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['randwire_ws_pico.png', 'randwire_ws_pico.svg']
    with Image.open('randwire_ws_pico.png') as picture:
        picture.load()
        assert picture.format == 'PNG' and min(picture.size) > 400
    ids = {group.get('id', '') for group in ET.parse('randwire_ws_pico.svg').iter(f'{SVG}g')}
    assert {key for key in ids if '-edge-' in key} == {
        f'{stage}-edge-{source}-{target}'
        for stage, graph in zip(('conv3', 'conv4', 'conv5'), load_graphs('randwire_ws_pico'), strict=True)
        for source, target in graph.edges}


def test_draw_samples_a_random_graph_model_with_its_seed_nodes_and_regime(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, 'draw', 'BA(2)', '--seed', '3', '--num-nodes', '8', '--regime', 'regular',
               '--output', 'new/g.svg') == ['new/g.svg']
    ids = {group.get('id', '') for group in ET.parse('new/g.svg').iter(f'{SVG}g')}
    expected = sample_graphs(parse_graph_model('ba(2)'), (4, 8, 8, 8), 3)
    assert {key for key in ids if '-edge-' in key} == {
        f'conv{stage}-edge-{source}-{target}' for stage, graph in enumerate(expected, start=2)
        for source, target in graph.edges}


def test_draw_takes_a_theme(capsys: pytest.CaptureFixture[str]) -> None:
    for theme, paper, turns in (([], LIGHT.paper, True), (['--theme', 'light'], LIGHT.paper, False),
                                (['--theme', 'dark'], DARK.paper, False)):
        assert run(capsys, 'draw', 'er(0.5)', '--num-nodes', '4', '-o', 'g.svg', *theme) == ['g.svg']
        drawn = Path('g.svg').read_text()
        assert f'fill: {paper}' in drawn and ('@media' in drawn) == turns, theme


@pytest.mark.parametrize(('argv', 'message'), [
    (['draw', 'ws(3,0.5)'], 'even K, got K=3'),
    (['draw', 'ws(4,1.5)'], 'P within [0, 1], got P=1.5'),
    (['draw', 'ws(4,0.5)', '--num-nodes', '4'], 'K < N, got K=4 and N=4'),
    (['draw', 'ws(4)'], "ws(k,p) takes 2 numbers, got 'ws(4)'"),
    (['draw', 'ws'], "unknown random graph model 'ws'"),
    (['draw', 'er(x)'], "'x' in 'er(x)' is not a number"),
    (['draw', 'er(nan)'], 'P within [0, 1]'),
    (['draw', 'ba(0)'], 'at least 1, got M=0'),
    (['draw', 'ba(5)', '--num-nodes', '5'], 'M < N, got M=5 and N=5'),
    # Generators that a study of another test brought stay known in this process.
    (['draw', 'rgg(0.2)'], "unknown random graph model 'rgg(0.2)'; known are ba(m), er(p), "),
    (['draw', 'er(0.2)', '--seed', '-1'], 'non-negative integer, got -1'),
    (['draw', 'er(0.2)', '--seed', 'one'], "invalid int value: 'one'"),
    (['draw', 'er(0.2)', '--num-nodes', '0'], 'at least 1 in the small regime, got 0'),
    (['draw', 'er(0.2)', '--num-nodes', '1', '--regime', 'regular'], 'at least 2 in the regular regime, got 1'),
    (['draw', 'er(0.2)', '--regime', 'large'], "invalid choice: 'large'"),
    (['draw', 'er(0.2)', '--output', 'g.pdf'], "g.pdf: a picture is written as .png or .svg, not '.pdf'"),
    (['draw', 'randwire_ws_c108'], "unknown name 'randwire_ws_c108'; did you mean randwire_ws_c109"),
    (['draw', 'resnet50'], "unknown name 'resnet50'; randwire-zoo list shows"),
    (['draw', 'randwire'], 'name a random graph model, such as ws(4,0.75)'),
    (['draw', 'randwire_ws_c109', '--seed', '2'], 'randwire_ws_c109 is frozen and takes no seed'),
    (['draw'], 'required: NAME|MODEL'),
    (['info', 'er(0.2)', '--channels', '1'], 'channels must be an integer of at least 2, got 1'),
    (['info', 'randwire_ws_pico', '--img-size', '0'], "'0' is no integer of at least 1"),
    (['info', 'randwire_ws_small_s6'], 'did you mean randwire_ws_small_s5'),
    (['list', '--filter', '*vgg*'], "no name matches '*vgg*'"),
    (['freeze', '--chek'], 'unrecognized arguments: --chek; did you mean --check?'),
    (['freeze', '--zzz'], 'unrecognized arguments: --zzz (see randwire-zoo freeze --help)'),
    (['lst'], "invalid choice: 'lst'; did you mean list?"),
    (['xyzzy'], "invalid choice: 'xyzzy'; it must be one of list, info, draw, freeze, "),
    (['train', '--data-dri', 'x'], 'unrecognized arguments: --data-dri x; did you mean --data-dir'),
    ([], 'required: COMMAND'),
])
def test_a_mistake_is_one_line_that_names_the_value_and_writes_nothing(
        argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert message in fail(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / 'taken').write_text('a file, not a folder')
    assert 'taken' in fail(capsys, 'draw', 'er(0.5)', '--num-nodes', '3', '--output', 'taken/g.svg')
    (tmp_path / 'folder.svg').mkdir()
    assert 'folder.svg' in fail(capsys, 'draw', 'er(0.5)', '--num-nodes', '3', '--output', 'folder.svg')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['folder.svg', 'taken']


def test_freeze_check_agrees_in_one_line_and_names_what_was_altered(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(capsys, 'freeze', '--check') == [
        f'the frozen graphs of all {len(ARCHITECTURES)} names agree under networkx {nx.__version__}']

    altered = {**ARCHITECTURES, 'randwire_ws_pico': ARCHITECTURES['randwire_ws_small_s1'],
               'randwire_ws_new': ARCHITECTURES['randwire_ws_small_s1']}
    monkeypatch.setattr('randwire_zoo.freeze.ARCHITECTURES', altered)
    assert cli.main(['freeze', '--check']) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ''
    assert [line for line in lines if line.startswith('randwire_ws_pico: graph ')] == lines[:3]
    assert len(lines) == 4 and lines[3].startswith('randwire_ws_new: ')


def test_freeze_leaves_existing_files_alone(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(randwire_zoo.__file__).parent / 'frozen'
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*.json')}
    assert 'nothing was written' in run(capsys, 'freeze')[0]
    assert {path: path.stat().st_mtime_ns for path in folder.glob('*.json')} == before


def test_version_names_the_packages_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    line, = run(capsys, '--version')
    assert line.startswith(f'randwire-zoo {randwire_zoo.__version__} (timm {timm.__version__}, torch ')


@pytest.mark.parametrize(('command', 'option'), [
    ('list', '--filter'), ('info', '--img-size'), ('draw', '--output'), ('freeze', '--check'), ('train', '--data-dir'),
    ('eval', '--img-size'), ('quickstart', '--epochs'), ('data', 'tiny-imagenet'), ('teacher', '--data-dir'),
    ('probe', '--random'), ('curves', '--theme'), ('detect', '--score-thresh'), ('convert', '--classes'),
    ('hub', 'manifest'), ('study', 'search'),
])
def test_every_command_has_help_with_its_options_and_an_example(
        command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = '\n'.join(run(capsys, command, '--help'))
    assert option in shown
    assert f'  randwire-zoo {command}' in shown[shown.index('\nexample'):]
    assert command in '\n'.join(run(capsys, '--help'))


@pytest.mark.parametrize(('error', 'message'), [
    (RuntimeError('Unknown model (randwire_ws_c110)'),
     'Unknown model (randwire_ws_c110); did you mean randwire_ws_c109'),
    (SafetensorError('Error while deserializing header'), 'Error while deserializing header'),
    (FileNotFoundError(2, 'No such file or directory', 'x.yaml'), 'x.yaml: No such file or directory'),
    (ModuleNotFoundError("No module named 'onnx'", name='onnx'), "No module named 'onnx'"),
    (ValueError('two\nlines'), 'two lines'),
    (RuntimeError('Error(s) in loading state_dict for RandWire:\n\tsize mismatch for fc.bias\n\tsize mismatch for x'),
     'Error(s) in loading state_dict for RandWire: size mismatch for fc.bias (and 1 more)'),
])
def test_errors_of_the_libraries_become_one_line(
        error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(args: object) -> int:
        raise error

    monkeypatch.setattr(cli, '_freeze', raise_it)
    assert message in fail(capsys, 'freeze')
    with pytest.raises(type(error)):
        cli.main(['--traceback', 'freeze'])


def test_timms_own_errors_for_names_and_missing_weights_are_among_them() -> None:
    for arguments in ({'model_name': 'randwire_ws_c110'}, {'model_name': 'randwire_ba_small_s5', 'pretrained': True}):
        with pytest.raises(RuntimeError) as caught:
            timm.create_model(**arguments)  # type: ignore[arg-type]
        assert arguments['model_name'] in (cli._explain(caught.value) or '')  # type: ignore[operator]


@pytest.mark.parametrize('error', [
    RuntimeError('a bug'), KeyError('a bug'), ModuleNotFoundError(name='randwire_zoo.x'),
])
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(args: object) -> int:
        raise error

    monkeypatch.setattr(cli, '_freeze', raise_it)
    with pytest.raises(type(error)):
        cli.main(['freeze'])


@pytest.mark.parametrize(('said', 'line'), [
    ('', 'interrupted; the same command starts again'), ('go on with x', 'interrupted; go on with x')])
def test_an_interrupt_is_one_line_that_says_how_to_go_on_and_130(
        said: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt(*[said] * bool(said))

    monkeypatch.setattr(cli, '_freeze', interrupt)
    assert cli.main(['freeze']) == 130
    assert capsys.readouterr() == ('', f'\nrandwire-zoo: {line}\n')
    monkeypatch.setenv('RANK', '1')  # of a distributed run, the first process says it
    assert cli.main(['freeze']) == 130
    assert capsys.readouterr() == ('', '')


# Stands in for torch: whoever imports it is interrupted in the midst of that, and would hide it.
HALF_IMPORTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    import time
    time.sleep(10)
except BaseException as error:
    raise RuntimeError('some library has failed half way') from None
"""


def test_an_interrupt_while_modules_are_imported_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / 'torch.py').write_text(HALF_IMPORTED)
    done = subprocess.run([sys.executable, '-m', 'randwire_zoo', 'train'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert (done.returncode, done.stdout) == (130, '')
    assert done.stderr == '\nrandwire-zoo: interrupted before anything was done\n'


TWICE = """
import os, signal, sys
from randwire_zoo.interrupts import exit_on_interrupt, raise_on_interrupt
exit_on_interrupt()
raise_on_interrupt()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGINT)  # as the terminal does it, to all
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print('put in order')
"""


def test_a_second_interrupt_and_the_processes_that_load_images_add_nothing() -> None:
    done = subprocess.run([sys.executable, '-c', TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'put in order\n', '')


@pytest.mark.parametrize('argv', [['--help'], ['--version'], ['list'], ['draw', '--help'], ['xyzzy'],
                                  *([name, '--help'] for name in cli.LATE_COMMANDS)])
def test_what_only_reads_imports_neither_torch_nor_timm_nor_matplotlib(argv: list[str], tmp_path: Path) -> None:
    """Each of them would take a second or more."""
    for name in ('torch', 'timm', 'matplotlib', 'numpy', 'networkx', 'huggingface_hub', 'pygraphviz'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("imported " + __name__)')
    done = subprocess.run([sys.executable, '-m', 'randwire_zoo', *argv], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert done.returncode == (2 if argv == ['xyzzy'] else 0), done.stderr
    assert 'imported' not in done.stderr


def test_what_is_written_to_a_file_has_every_letter_whatever_the_encoding() -> None:
    """Windows' own has no minus sign, and Python would end the command there."""
    results = Path(__file__).resolve().parents[1] / 'docs' / 'studies' / 'table2_small.jsonl'
    written = [subprocess.run([sys.executable, '-m', 'randwire_zoo', 'study', 'report', str(results)],
                              capture_output=True, env={**os.environ, 'PYTHONIOENCODING': encoding})
               for encoding in ('cp1252', 'utf-8')]
    assert [(done.returncode, done.stderr) for done in written] == [(0, b'')] * 2
    assert written[0].stdout == written[1].stdout and '−' in written[0].stdout.decode()


def test_the_module_runs_as_a_program_and_reports_mistakes_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, '-m', 'randwire_zoo', 'draw', 'ws(5,0.5)'], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'randwire-zoo: error: WS(K, P) needs an even K, got K=5\n'


def test_a_reader_that_closes_the_pipe_early_gets_no_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, '-m', 'randwire_zoo', 'list'], stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b'')
