"""What `make mutants` tries is all there is, and answers for itself by tests that exist."""
from __future__ import annotations

import ast
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).resolve().parents[1]


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text('utf-8')).body if isinstance(node, ast.FunctionDef)}


def test_every_source_file_is_mutated_or_excused() -> None:
    sources = {path.relative_to(ROOT).as_posix() for folder in ('randwire_zoo', 'detection', 'hub')
               for path in (ROOT / folder).rglob('*.py')}
    assert sources - {*mutants.MODULES, *mutants.EXCUSED} == set()
    assert {*mutants.MODULES, *mutants.EXCUSED} - sources == set(), 'there is no such file'
    assert not mutants.MODULES.keys() & mutants.EXCUSED.keys()
    for name, reason in mutants.EXCUSED.items():  # a test, or nothing but a docstring, imports and __all__
        if reason.startswith('test_'):
            assert (ROOT / 'tests' / reason.split()[0]).is_file()
            continue
        for node in ast.parse((ROOT / name).read_text('utf-8')).body:
            assert isinstance(node, (ast.Import, ast.ImportFrom)) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or (
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__'), f'{name}: {node.lineno}'


def test_the_tests_that_answer_for_a_file_exist() -> None:
    there = {path.stem for path in (ROOT / 'tests').glob('test_*.py')}
    for path, tests in mutants.MODULES.items():
        assert tests and set(tests) <= there and len(set(tests)) == len(tests), path
    for test in mutants.LEFT_OUT:
        name, _, function = test.partition('::')
        assert function in functions(ROOT / name), test
    assert mutants.read_survivors().keys() <= mutants.MODULES.keys()


def test_numbers_that_cannot_be_looked_up_are_left_out(
        tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    git('init', '-q', 'whole')
    git('-C', 'whole', 'commit', '-q', '--allow-empty', '-m', 'a')
    git('-C', 'whole', 'commit', '-q', '--allow-empty', '-m', 'b')
    git('clone', '-q', '--depth=1', f'file://{tmp_path / "whole"}', 'shallow')
    head, before = git('-C', 'whole', 'log', '--format=%h').split()
    graphs, network, ordering = (f'randwire_zoo/{name}.py' for name in ('graphs', 'network', 'ordering'))
    summary = {graphs: {'commit': f'{head}+'}, network: {'commit': before}, ordering: {'commit': '0' * 12},
               'randwire_zoo/gone.py': {'commit': head}}
    for clone, kept in (('whole', [graphs, network]), ('shallow', [graphs, network, ordering])):
        monkeypatch.setattr(mutants, 'ROOT', tmp_path / clone)
        assert list(mutants.lasting(summary)) == kept
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if 'gone.py' in line] == [
            'mutants.json: randwire_zoo/gone.py is left out, which is not mutated any more']
        assert [line for line in said if 'ordering' in line] == [
            f'mutants.json: {ordering} is left out, as git knows no commit {"0" * 12}'] * (clone == 'whole')


def test_the_commit_and_the_files_are_this_checkouts_in_a_hook_of_another_repository(
        tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('ours', 'hook'):
        git('init', '-q', name)
        (tmp_path / name / name).write_text('a')
        git('-C', name, 'add', '.')
        git('-C', name, 'commit', '-q', '-m', name)
    head = git('-C', 'ours', 'rev-parse', '--short=12', 'HEAD')
    monkeypatch.setattr(mutants, 'ROOT', tmp_path / 'ours')
    monkeypatch.setattr(mutants, 'TREE', tmp_path / 'tree')
    monkeypatch.setattr(mutants, 'BESIDE', ())
    monkeypatch.setenv('GIT_DIR', str(tmp_path / 'hook' / '.git'))
    monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path / 'hook'))
    monkeypatch.setenv('GIT_INDEX_FILE', str(tmp_path / 'hook' / '.git' / 'index'))
    summary = {'randwire_zoo/graphs.py': {'commit': head}}
    assert mutants.commit('ours') == head and mutants.lasting(summary) == summary
    mutants.copy_project()
    assert [path.name for path in (tmp_path / 'tree').iterdir()] == ['ours']
    (tmp_path / 'ours' / 'ours').write_text('b')
    assert mutants.commit('ours') == head + '+'


def test_the_numbers_that_are_kept_are_of_files_that_are_mutated() -> None:
    assert json.loads(mutants.SUMMARY.read_text('utf-8')).keys() <= mutants.MODULES.keys()
