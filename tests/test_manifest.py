"""The manifest of published weights: its rows, the overlay, and what a wrong one says."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import errors
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from randwire_zoo.cli import main
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.models import WEIGHTS
from randwire_zoo.weights.manifest import (
    PACKAGED,
    HubError,
    PublishedWeights,
    download,
    fetch,
    hub_errors,
    read_manifest,
    read_weights,
    sha256_of,
)

NAME = 'randwire_ws_pico'
ROW: dict[str, Any] = {
    'repo_id': 'someone/pico', 'revision': '1' * 40, 'sha256': '2' * 64, 'size': 9, 'num_classes': 3,
    'graphs_sha256': graphs_sha256(load_graphs(NAME)), 'license': 'mit', 'metrics': {'top1': 50.5},
    'input_size': [3, 96, 64], 'mean': [0.1, 0.2, 0.3]}


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', code], cwd=folder, env={**os.environ, **variables},
                          capture_output=True, text=True, timeout=300)


def test_the_packaged_rows_are_right_and_every_file_has_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['hub', 'manifest', 'check', '--manifest', str(PACKAGED)]) == 0
    for row in read_manifest(PACKAGED).values():
        assert row.file is not None
        assert hashlib.sha256(Path(row.file).read_bytes()).hexdigest() == row.sha256
        cfg: Any = timm.get_pretrained_cfg(row.name)
        assert (cfg.num_classes, cfg.input_size, cfg.mean, cfg.license) == (
            row.num_classes, row.input_size, row.mean, row.license)


def test_a_row_comes_back_as_it_was_written() -> None:
    row = PublishedWeights.from_dict(f'{NAME}.x', ROW)
    assert row.to_dict() == ROW and row.architecture == NAME
    assert PublishedWeights.from_dict(row.name, json.loads(json.dumps(row.to_dict()))) == row


def test_the_overlay_makes_timms_configuration_and_comes_first(tmp_path: Path) -> None:
    (tmp_path / 'weights.json').write_text(json.dumps({f'{NAME}.mine': ROW}))
    done = python(
        'import timm\n'
        'cfg = timm.get_pretrained_cfg("randwire_ws_pico")\n'
        'print(cfg.tag, cfg.hf_hub_id, cfg.hf_hub_filename, cfg.num_classes, cfg.input_size, cfg.pool_size, cfg.mean)\n'
        'print(timm.list_pretrained("randwire*"))\n', tmp_path, RANDWIRE_ZOO_WEIGHTS=str(tmp_path / 'weights.json'))
    assert done.stdout.splitlines() == [
        f'mine someone/pico@{"1" * 40} model.safetensors 3 (3, 96, 64) (3, 2) (0.1, 0.2, 0.3)',
        str(sorted([*read_manifest(PACKAGED), f'{NAME}.mine']))], done.stderr


@pytest.mark.parametrize(('rows', 'tag', 'weights'), [
    ({'leaves': (3, False)}, 'untrained', 'leaves'),  # the name stays the paper's network; its weights are these
    ({'leaves': (3, False), 'in1k': (1000, True)}, 'in1k', 'in1k'),  # in whatever order
    ({'in1k': (1000, True), 'in1k_320px': (1000, True)}, 'in1k', 'in1k'),
    ({}, 'untrained', 'tin200_kd'),
])
def test_the_default_weights_of_a_name_decide_what_it_is_without_a_tag(
        rows: dict[str, tuple[int, bool]], tag: str, weights: str, tmp_path: Path) -> None:
    (tmp_path / 'weights.json').write_text(json.dumps({f'randwire_ws_c109.{name}': {
        **{key: value for key, value in ROW.items() if key not in ('label_names', 'label_descriptions')},
        'num_classes': classes, 'is_default': default} for name, (classes, default) in rows.items()}))
    done = python(
        'import timm\nfrom randwire_zoo.models import find_weights\n'
        'cfg = timm.get_pretrained_cfg("randwire_ws_c109")\n'
        'print(cfg.tag, cfg.num_classes, find_weights("randwire_ws_c109").name)\n',
        tmp_path, RANDWIRE_ZOO_WEIGHTS=str(tmp_path / 'weights.json'))
    assert done.stdout.split() == [tag, '1000', f'randwire_ws_c109.{weights}'], done.stderr


WRONG: list[tuple[Any, str]] = [
    ({'randwire': ROW}, "'randwire' is no arch.tag"), ({f'{NAME}.x': {**ROW, 'sha': 1}}, 'unknown keys (sha)'),
    ({f'{NAME}.ü': ROW}, 'is no arch.tag'), ({f'{NAME}.x': 7}, 'has no keys'),
    ({f'{NAME}.x': {**ROW, 'sha256': 'abc'}}, "sha256 must be 64 hexadecimal digits, got 'abc'"),
    ({f'{NAME}.x': {**ROW, 'revision': 'main'}}, "revision must be 40 hexadecimal digits, got 'main'"),
    ({f'{NAME}.x': {k: v for k, v in ROW.items() if k != 'size'}}, 'lacks size'),
    ({f'{NAME}.x': {**ROW, 'file': 'a'}}, 'must have either repo_id and revision, or file'),
    ({f'{NAME}.x': {**ROW, 'size': 0}}, 'size must be a number of bytes, got 0'),
    ({f'{NAME}.x': {**ROW, 'size': True}}, 'size must be a number of bytes, got True'),
    ({f'{NAME}.x': {**ROW, 'input_size': None}}, 'input_size must be left out where there is none'),
    ({f'{NAME}.x': {**ROW, 'revision': None}}, 'revision must be left out where there is none'),
    ({f'{NAME}.x': {**{k: v for k, v in ROW.items() if k not in ('repo_id', 'revision')}, 'file': []}},
     'file must be one line of text, got []'),
    ({f'{NAME}.x': {**ROW, 'num_classes': '10'}}, "num_classes must be a number of classes, got '10'"),
    ({f'{NAME}.x': {**ROW, 'mean': [0.5]}}, 'mean must be a number for each of the 3 channels'),
    ({f'{NAME}.x': {**ROW, 'crop_pct': '0.9'}}, "crop_pct must be a number above 0, got '0.9'"),
    ({f'{NAME}.x': {**ROW, 'model_args': {'num_classes': 3}}}, 'model_args must be a mapping without num_classes'),
    ({f'{NAME}.x': {**ROW, 'model_args': {'pretrained_cfg_overlay': {'file': 'x'}}}}, 'and sources of weights, got'),
    ({f'{NAME}.x': {**ROW, 'metrics': {'top1': '50'}}}, 'metrics must be numbers by name'),
    ({f'{NAME}.x': {**ROW, 'label_names': ['a']}}, 'label_names has 1 names for 3 classes'),
    ({f'{NAME}.x': {**ROW, 'label_names': 3}}, 'label_names must be a list of names, got 3'),
    ({f'{NAME}.x': {**ROW, 'label_names': 'abc'}}, "label_names must be a list of names, got 'abc'"),
    ({f'{NAME}.x': {**ROW, 'license': 'MIT\nevil: 1'}}, 'license must be one line of text'),
    ({f'{NAME}.x': {**ROW, 'repo_id': 'http://x/y'}}, 'a repository is named OWNER/NAME'),
]


@pytest.mark.parametrize(('table', 'message'), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_row_costs_itself_and_is_told_in_one_line(
        table: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'weights.json'
    path.write_text(json.dumps({**table, f'{NAME}.right': ROW}))
    assert main(['hub', 'manifest', 'list', '--manifest', str(path)]) == 0
    said = capsys.readouterr()
    assert str(path) in said.err and message in said.err and said.err.count('\n') == 1
    assert f'{NAME}.right' in said.out
    assert main(['hub', 'manifest', 'check', '--manifest', str(path)]) == 1
    assert capsys.readouterr().out == '1 rows are right, 1 wrong\n'
    monkeypatch.setenv('RANDWIRE_ZOO_WEIGHTS', str(path))
    assert list(read_manifest()) == [f'{NAME}.right', *read_manifest(PACKAGED)]
    record, = caplog.records
    assert message in record.getMessage() and record.getMessage().endswith('; the row is left out')


@pytest.mark.parametrize(('text', 'message'), [
    (None, 'there is no such file'), ('{', 'is no JSON'), ('[]', 'it must be an object with a row for each arch.tag'),
])
def test_what_is_no_manifest_is_an_error_where_it_is_named_and_left_out_where_it_is_laid_over(
        text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'weights.json'
    if text is not None:
        path.write_text(text)
    assert main(['hub', 'manifest', 'list', '--manifest', str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and message in said and said.count('\n') == 1
    monkeypatch.setenv('RANDWIRE_ZOO_WEIGHTS', str(path))
    assert list(read_manifest()) == list(read_manifest(PACKAGED)) != []
    record, = caplog.records
    assert record.getMessage().startswith('RANDWIRE_ZOO_WEIGHTS ') and message in record.getMessage()


def test_an_overlay_with_wrong_rows_leaves_every_name_and_command(tmp_path: Path) -> None:
    rows = {'randwire_ws_nobody.x': ROW, f'{NAME}.bad': {**ROW, 'num_classes': '3'}, f'{NAME}.mine': ROW}
    (tmp_path / 'weights.json').write_text(json.dumps(rows))
    done = python('import sys, timm; print(timm.is_model("resnet18"), timm.is_model("randwire_ws_c109"))\n'
                  'print(timm.get_pretrained_cfg("randwire_ws_pico").tag)\n'
                  'from randwire_zoo.cli import main; sys.exit(main(["list", "--filter", "*pico"]))', tmp_path,
                  RANDWIRE_ZOO_WEIGHTS=str(tmp_path / 'weights.json'))
    assert done.returncode == 0 and done.stdout.startswith('True True\nmine\n') and 'mine, digits' in done.stdout
    assert len(done.stderr.splitlines()) == 2, done.stderr
    done = python('import sys; from randwire_zoo.cli import main; sys.exit(main(["hub", "manifest", "check"]))',
                  tmp_path, RANDWIRE_ZOO_WEIGHTS=str(tmp_path / 'weights.json'))
    assert done.returncode == 1 and done.stdout.endswith(', 2 wrong\n'), 'of the rows in use'
    assert 'there is no such network' in done.stderr and 'randwire_ws_pico.bad: num_classes must be' in done.stderr


def test_add_checks_the_wiring_and_keeps_the_other_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, row = tmp_path / 'weights.json', tmp_path / 'row.json'
    row.write_text(json.dumps({f'{NAME}.x': {**ROW, 'graphs_sha256': '0' * 64}}))
    assert main(['hub', 'manifest', 'add', str(row), '--manifest', str(path)]) == 1
    assert f'the manifest has graphs {"0" * 64}, the name has ' in capsys.readouterr().err and not path.exists()
    for tag in ('x', 'y'):
        row.write_text(json.dumps({f'{NAME}.{tag}': ROW}))
        assert main(['hub', 'manifest', 'add', str(row), '--manifest', str(path)]) == 0
    assert set(read_manifest(path)) == {f'{NAME}.x', f'{NAME}.y'}
    row.write_text('no row')
    assert main(['hub', 'manifest', 'add', str(row), '--manifest', str(path)]) == 2


def test_add_replaces_a_row_of_the_same_network_and_leaves_anothers_alone(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, row = tmp_path / 'weights.json', tmp_path / 'row.json'

    def add(*options: str, **values: Any) -> int:
        row.write_text(json.dumps({f'{NAME}.x': {**ROW, **values}}))
        return main(['hub', 'manifest', 'add', str(row), '--manifest', str(path), *options])

    assert add() == add(sha256='3' * 64, revision='4' * 40, model_args={'node_op': 'sep_conv'}) == 0
    written = path.read_text()
    assert '3' * 64 in written, 'later weights of the same network, whose node operation is the default'
    for values, said in (({'model_args': {'node_op': 'conv'}}, "node_op='sep_conv' instead of 'conv'"),
                         ({'num_classes': 4}, 'num_classes=3 instead of 4'),
                         ({'mean': [0.1, 0.2, 0.4]}, 'mean=(0.1, 0.2, 0.3) instead of (0.1, 0.2, 0.4)')):
        capsys.readouterr()
        assert add(**values) == 1
        assert f'weights.json has another network as {NAME}.x, with {said}; nothing was' in capsys.readouterr().err
        assert path.read_text() == written
    assert add('--overwrite', num_classes=4) == 0 and read_manifest(path)[f'{NAME}.x'].num_classes == 4


def test_a_file_is_hashed_each_time_and_what_is_hashed_is_what_is_loaded(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = read_manifest(PACKAGED)[f'{NAME}.digits']
    path = tmp_path / 'model.safetensors'
    path.write_bytes(Path(str(packaged.file)).read_bytes())
    row, before = replace(packaged, file=str(path)), path.stat()
    right = read_weights(row)
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 1
    path.write_bytes(altered)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for read in (fetch, read_weights):
        with pytest.raises(ValueError, match=f'has sha256 {hashlib.sha256(altered).hexdigest()} and must have'):
            read(row)
    path.write_bytes(altered[:-1])
    with pytest.raises(ValueError, match=rf'has {row.size - 1:,} bytes and must have {row.size:,}'):
        fetch(row)

    # Whoever swaps the file after it was hashed changes nothing: timm does not open it again.
    real = Path.read_bytes

    def swap(self: Path) -> bytes:
        data = real(self)
        if self == path:
            self.write_bytes(altered)
        return data

    path.write_bytes(Path(str(packaged.file)).read_bytes())
    monkeypatch.setattr(Path, 'read_bytes', swap)
    monkeypatch.setitem(WEIGHTS, packaged.name, row)
    model: Any = timm.create_model(NAME, pretrained=True)
    assert real(path) == altered and model.pretrained_cfg['file'] == packaged.file
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, right[name]), name
    json.dumps(model.pretrained_cfg)  # no tensors in it


def test_a_row_that_says_nothing_of_its_images_means_timms_of_imagenet_and_a_file_is_hashed_whole(
        tmp_path: Path) -> None:
    row = PublishedWeights('randwire_ws_pico.x', 'a' * 64, 1, 0, 'b' * 64, 'mit', file='x.safetensors')
    assert (row.input_size, row.mean, row.std) == ((3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    for size in (0, 1, 2 ** 20, 2 ** 20 + 1):
        (tmp_path / 'file').write_bytes(bytes(size))
        assert sha256_of(tmp_path / 'file') == hashlib.sha256(bytes(size)).hexdigest()
    with pytest.raises(FrozenInstanceError):
        row.size = 2  # type: ignore[misc]


class BrokenOff(Exception):
    """What the Hub's client lets through of its HTTP library."""


BrokenOff.__module__ = 'httpx2._exceptions'


def answered(status: int) -> Exception:
    error = OSError('what it said')
    error.__cause__ = RuntimeError()
    error.__cause__.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(('error', 'offline', 'cause'), [
    (HubError('said already'), True, '^said already$'),
    (errors.OfflineModeIsEnabled('no'), True, '^what: HF_HUB_OFFLINE is set$'),
    (errors.LocalEntryNotFoundError('no'), True, '^what: it is not in the cache, and HF_HUB_OFFLINE is set$'),
    (errors.LocalEntryNotFoundError('no'), False,
     r'^what: it is not in the cache, and http\S+ could not be reached \(gave up after \d s\)$'),
    (errors.EntryNotFoundError('no'), False, r'^what: the repository has no file\.x at this revision$'),
    (answered(401), False, r'^what: the Hub does not accept the token \(HF_TOKEN, or the login\)$'),
    (answered(403), False, r'^what: the token may not do this \(HF_TOKEN, or the login\)$'),
    (answered(500), False, '^what: the Hub answered 500: what it said$'),
    (OSError('Consistency check failed: 3 of 4'), False, '^what: the file arrived incomplete; run it again$'),
    (OSError('a\nb' * 300), False, r'^what: OSError after \d s: (ab|a b){2}.{,200} …$'),
    (BrokenOff('c' * 300), False,
     r'^what: the transfer from http\S+ broke off \(BrokenOff: c{120} …\); run it again to go on with it$'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_what_the_hubs_client_raises_becomes_one_line_with_the_cause(
        error: Exception, offline: bool, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', offline)
    with pytest.raises(HubError, match=cause) as caught, hub_errors('what', 'file.x'):
        raise error
    assert '\n' not in str(caught.value)


def test_what_the_hub_is_not_to_blame_for_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match=r'^what: no name$'), hub_errors('what'):
        raise errors.HFValidationError('no name')
    for error in (KeyError('x'), ValueError('x'), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, hub_errors('what'):
            raise error
        assert caught.value is error
    with pytest.raises(HubError, match=r'^a/b@main: it is not in the cache'):
        download('a/b')
    with pytest.raises(HubError, match=r'^a/b@v1: it is not in the cache'):
        download('a/b', 'v1')
    with pytest.raises(HubError, match=r'^this: it is not in the cache'):
        download('a/b', 'v1', what='this')
