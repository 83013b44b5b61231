"""Every command and snippet of the documents runs, from the text itself, or a comment before it says why it does not.

    <!-- not run: ImageNet -->     the block that follows is only parsed: its commands, and the recipes that they name
    <!-- needs: detectron2 -->     the block that follows is run where that is installed

A page is run from top to bottom, in one folder and one namespace, as a reader would; here the folder has a few digits
where the reader has 1,797. `# name.py` in the first line of a block makes it that file. A block of `text` that follows
is what is printed, where … stands for anything.
"""
from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from randwire_zoo import GraphModel
from randwire_zoo.cli import build_parser, main
from randwire_zoo.kernels import library as kernels
from randwire_zoo.studies.study import load_study
from randwire_zoo.training import datasets
from randwire_zoo.training.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ['README.md', 'CONTRIBUTING.md', *sorted(
    path.relative_to(ROOT).as_posix() for pattern in ('docs/*.md', 'configs/**/*.md') for path in ROOT.glob(pattern))]
BLOCK = re.compile(r'^(?:<!-- (?P<mark>not run|needs): (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$',
                   re.MULTILINE | re.DOTALL)
# What blocks that are not run may call, too.
OTHERS = {'cd', 'cp', 'export', 'git', 'jupyter', 'mkdir', 'pip', 'python', 'sh', 'torchrun'}
KINDS = {'image/svg+xml': '_repr_svg_', 'text/html': '_repr_html_'}  # of outputs of a notebook
TRAIN_PY = json.loads((ROOT / 'tests' / 'golden' / 'train_py.json').read_text('utf-8'))
STOCK_FLAGS = {'-c', '--checkpoint', *(flag for argument in TRAIN_PY.values() for flag in argument['flags'])}


@dataclass(frozen=True)
class Snippet:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    why: str
    printed: str | None

    @property
    def commands(self) -> list[str]:
        """The command lines, without what they print."""
        text = re.sub(r"\$\((?:'[^']*'|[^)'])*\)", '', self.text)  # what another command prints, over lines too
        lines = text.replace('\\\n', ' ').splitlines()
        if self.language == 'console':
            return [line[2:] for line in lines if line.startswith('$ ')]
        return [line for line in lines if line.strip() and not line.startswith('#')]

    @property
    def lacks(self) -> str:
        """Why it cannot be run here, which is the package that it needs."""
        missing = self.mark == 'needs' and importlib.util.find_spec(self.why) is None
        return f'{self.why} is not installed' if missing else ''

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text(encoding='utf-8')
    blocks = list(BLOCK.finditer(text))
    found = []
    for block, following in zip_longest(blocks, blocks[1:]):
        if block['language'] in ('text', 'bibtex', 'pycon', ''):
            continue
        printed = (following['text'] if following and following['language'] == 'text'
                   and not text[block.end():following.start()].strip() else None)
        found.append(Snippet(page, text.count('\n', 0, block.start('text')), block['language'], block['text'],
                             block['mark'] or '', block['why'] or '', printed))
    return found


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels, generators, modules and threads are afterwards what they were."""
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))
    monkeypatch.setattr(kernels, '_in_use', kernels._in_use)
    modules, threads = set(sys.modules), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.startswith('my_'):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has: the clone, and digits, of which there are few here."""
    for name in ('docs', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('validation', 2)):
        for label in range(10):
            (tmp_path / 'digits' / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / 'digits' / split / str(label) / f'{index}.png')
    monkeypatch.setattr(datasets, 'write_digits', Path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.parametrize('page', [page for page in PAGES if snippets(page)])
def test_a_page_runs_from_top_to_bottom(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {'__name__': '__main__'}
    running = [snippet for snippet in snippets(page) if snippet.mark != 'not run']
    if running and all(snippet.lacks for snippet in running):
        pytest.skip('; '.join(sorted({snippet.lacks for snippet in running})))
    for snippet in running:
        if snippet.lacks:
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if match := re.match(r'# ([\w.]+\.\w+)\n', snippet.text):
                Path(match[1]).write_text(snippet.text, encoding='utf-8')
            elif snippet.language == 'python':
                exec(compile('\n' * snippet.line + snippet.text, str(ROOT / page), 'exec'), names)
            else:
                assert snippet.language in ('bash', 'console'), f'{snippet}: nothing runs {snippet.language!r}'
                for command in snippet.commands:
                    run(command, str(snippet), monkeypatch)
        if snippet.printed is not None:
            pattern = '.*?'.join(re.escape(part) for part in snippet.printed.strip().split('…'))
            printed = output.getvalue()
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f'{snippet} printed\n{printed}'


def run(command: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line in this process."""
    words = [os.path.expandvars(word) for word in shlex.split(command, comments=True)]
    if words[0] == 'export':
        monkeypatch.setenv(*words[1].split('=', 1))
    elif words[0] == 'randwire-zoo':
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(words[1:])
        assert code == 0, f'{place}: {command}\n{errors.getvalue()}'
    elif words[:2] == ['python', '-c']:
        exec(words[2], {'__name__': '__main__'})
    elif words[0] == 'python' and words[1].startswith('my_'):  # a file of the page; it may start processes of its own
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f'{place}: {command}\n{done.stderr}'
    else:
        raise AssertionError(f'{place}: this test cannot run {command!r}; put <!-- not run: why --> before the block')


@pytest.mark.parametrize('page', [page for page in PAGES if any(one.mark == 'not run' for one in snippets(page))])
def test_what_is_not_run_is_parsed(page: str) -> None:
    for snippet in snippets(page):
        if snippet.mark == 'not run':
            parse_block(snippet)


@pytest.mark.parametrize('snippet', [one for page in PAGES for one in snippets(page) if one.mark == 'needs'], ids=str)
def test_what_needs_a_package_is_parsed_and_where_that_is_missing_named_among_what_was_skipped(
        snippet: Snippet) -> None:
    """The test of its page runs it, or passes it over, of which nobody would be told."""
    parse_block(snippet)
    if snippet.lacks:
        pytest.skip(snippet.lacks)


def parse_block(snippet: Snippet) -> None:
    if snippet.language == 'python':
        compile(snippet.text, str(snippet), 'exec')
    elif snippet.language != 'yaml':
        for command in re.split(r' && |\n', '\n'.join(snippet.commands)):
            parse(command, str(snippet))


def parse(command: str, place: str) -> None:
    """Flags are known to the program's own parser or train.py; recipes, studies, configs, make's targets are there."""
    words = shlex.split(command, comments=True)
    while words and re.match(r'\w+=', words[0]):
        words.pop(0)
    if not words:  # an assignment alone
        return
    if '-m' in words and words[words.index('-m') + 1] == 'randwire_zoo':  # of torchrun
        words = ['randwire-zoo', *words[words.index('-m') + 2:]]
    script = next((word for word in words if word in ('train.py', 'validate.py')), None)
    if words[0] == 'randwire-zoo':
        words = words[:words.index('>')] if '>' in words else words
        args = build_parser(words[1]).parse_args(words[1:])
        if words[1] == 'train' and args.config:
            load_recipe(args.config)
        if words[1:3] in (['study', 'show'], ['study', 'run']) and not args.study.startswith('my_'):
            load_study(args.study)
    elif script is not None:
        given = words[words.index(script) + 1:]
        unknown = {word for word in given if word.startswith('-')} - STOCK_FLAGS
        assert not unknown, f'{place}: {script} has no {unknown}'
        words = [f'configs/{word.removeprefix("RECIPES/")}' for word in given if word.startswith('RECIPES/')]
    elif words[0] == 'make':
        assert words[1] in re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text('utf-8'), re.MULTILINE), place
    else:
        assert words[0] in OTHERS, f'{place}: who is {words[0]!r}?'
    for word in words:
        assert not word.startswith('configs/') or (ROOT / word).is_file(), f'{place}: {word} is not there'


@pytest.mark.parametrize('page', PAGES)
def test_a_page_has_no_code_that_escapes_these_tests(page: str) -> None:
    text = BLOCK.sub('', (ROOT / page).read_text(encoding='utf-8'))
    assert '```' not in text, 'a block whose mark or end is not as it should be'
    if page.startswith('docs/') and page not in ('docs/performance.md', 'docs/results.md'):
        assert not re.findall(r'^    (?:randwire-zoo|python|make|pip|\$) .*', text, re.MULTILINE), 'fence it'
        assert snippets(page)[0].mark != 'not run', 'a page begins with a command that runs'


def test_the_notebook_runs_and_its_outputs_are_of_the_kinds_that_it_has(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`jupyter execute --inplace docs/randwire.ipynb` writes them; nothing here needs Jupyter."""
    path = ROOT / 'docs' / 'randwire.ipynb'
    text = path.read_text(encoding='utf-8')
    assert len(text) < 1_000_000 and not re.search(r'/(?:home|root|tmp|work|Users)/', text), 'large, or with a path'
    shown: list[str] = []
    monkeypatch.setattr('matplotlib.pyplot.show', lambda: shown.append('image/png'))
    names: dict[str, Any] = {'__name__': '__main__'}
    with matplotlib.rc_context({'backend': 'agg'}):
        for cell in json.loads(text)['cells']:
            if cell['cell_type'] != 'code':
                continue
            *body, last = ast.parse(''.join(cell['source'])).body
            output = io.StringIO()
            shown.clear()
            with contextlib.redirect_stdout(output):
                exec(compile(ast.Module(body, []), cell['id'], 'exec'), names)
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), cell['id'], 'eval'), names)
                    if value is not None:
                        shown += [kind for kind, method in KINDS.items() if getattr(value, method, lambda: None)()]
                else:
                    exec(compile(ast.Module([last], []), cell['id'], 'exec'), names)
            shown += ['stdout'] if output.getvalue() else []
            kept = {kind for one in cell['outputs'] for kind in one.get('data', {one.get('name'): None})}
            assert kept - {'text/plain'} == set(shown), cell['id']
        names['plt'].close('all')


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    text = re.sub(r'^```.*?^```$', '', page.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pytest.mark.parametrize('page', [*PAGES, 'CHANGELOG.md'])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = re.sub(r'^```.*?^```$', '', path.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if link.startswith(('http://', 'https://')):
            continue
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        assert target.exists() and target.is_relative_to(ROOT), f'{page}: {link}'
        assert not anchor or anchor in anchors(target), f'{page}: {link}'
