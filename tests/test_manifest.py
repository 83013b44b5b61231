"""The manifest of published weights: its rows, the overlay, and what a wrong one says."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from randwire_zoo.cli import main
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.manifest import PACKAGED, PublishedWeights, check_file, read_manifest

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
        "['randwire_ws_pico.digits', 'randwire_ws_pico.mine']"], done.stderr


@pytest.mark.parametrize(('table', 'message'), [
    ('{', 'there is no such file'), ('[]', 'it must be an object with a row for each arch.tag'),
    ({'randwire': ROW}, "'randwire' is no arch.tag"), ({f'{NAME}.x': {**ROW, 'sha': 1}}, 'unknown keys (sha)'),
    ({f'{NAME}.x': {**ROW, 'sha256': 'abc'}}, "sha256 must be 64 hexadecimal digits, got 'abc'"),
    ({f'{NAME}.x': {**ROW, 'revision': 'main'}}, "revision must be 40 hexadecimal digits, got 'main'"),
    ({f'{NAME}.x': {k: v for k, v in ROW.items() if k != 'size'}}, 'lacks size'),
    ({f'{NAME}.x': {**ROW, 'file': 'a'}}, 'must have either repo_id and revision, or file'),
    ({f'{NAME}.x': {**ROW, 'size': 0}}, 'size must be a number of bytes, got 0'),
])
def test_a_wrong_manifest_says_in_one_line_what_is_wrong(
        table: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'weights.json'
    if table != '{':
        path.write_text(table if isinstance(table, str) else json.dumps(table))
    assert main(['hub', 'manifest', 'list', '--manifest', str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and message in said and said.count('\n') == 1


def test_a_wrong_overlay_leaves_timm_usable_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / 'weights.json').write_text(json.dumps({'randwire_ws_nobody.x': ROW}))
    done = python('import timm; print(timm.is_model("resnet18"))', tmp_path,
                  RANDWIRE_ZOO_WEIGHTS=str(tmp_path / 'weights.json'))
    assert done.stdout == 'True\n' and 'there is no frozen name randwire_ws_nobody' in done.stderr


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


def test_an_altered_file_is_refused_after_it_was_found_right_before(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    path.write_bytes(b'weights')
    right = hashlib.sha256(b'weights').hexdigest()
    check_file(path, 7, right, 'these')
    with pytest.raises(ValueError, match=r'these has been altered: .* has 7 bytes and must have 8'):
        check_file(path, 8, right, 'these')
    path.write_bytes(b'wEights')
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=f'has sha256 {hashlib.sha256(b"wEights").hexdigest()} and must have {right}'):
        check_file(path, 7, right, 'these')
