"""Which room of the house may ask which: dependencies point one way, in the order of the map in CONTRIBUTING.md."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ('detection', 'hub')  # what lies in configs is run by detectron2, and by nothing here
#: What a function asks for that stands later in the map. A module never does when it is imported.
LATER = {
    ('graphs', 'drawing'): 'a graph draws itself in a notebook',
    ('provenance', 'kernels'): 'a record says which kernels computed',
    ('weights', 'models'): 'timm knows by its tag what a network was trained as',
    ('weights', 'network'): 'an error names the nearest of its arguments',
}


def modules() -> dict[str, Path]:
    """Every module of the package by the name it has when installed, without `randwire_zoo.`."""
    found = {}
    for folder in ('randwire_zoo', *BESIDE):
        for path in (ROOT / folder).rglob('*.py'):
            parts = path.relative_to(ROOT if folder in BESIDE else ROOT / folder).with_suffix('').parts
            name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
            if name and not name.startswith('__'):
                found[name] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The modules of the package that one imports, and whether it does so as soon as it is imported itself."""
    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            return
        at_once = at_once and not isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.ImportFrom):
            package = ('randwire_zoo.' + name).split('.')[:None if path.stem == '__init__' else -1]
            base = package[:len(package) + 1 - node.level] if node.level else []
            full = [*base, *(node.module or '').split('.')] if node.module else base
            if full[0] == 'randwire_zoo':
                for alias in node.names:
                    inner = '.'.join([*full[1:], alias.name])
                    target = inner if inner in known else '.'.join(full[1:])
                    if target:
                        yield target, at_once
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once)
    yield from visit(ast.parse(path.read_text('utf-8')), True)


def test_dependencies_point_one_way_in_the_order_of_the_map() -> None:
    text = (ROOT / 'CONTRIBUTING.md').read_text('utf-8')
    places = text[text.index('## Where things are'):text.index('Dependencies point one way, in this order')]
    known = modules()
    rooms = {name.partition('.')[0] for name in known}
    named = [word for word in re.findall(r'([a-z]+)(?=\.py|/)', places) if word in rooms]
    rank = {room: place for place, room in enumerate(dict.fromkeys(named))}
    assert rooms == set(rank), 'the map in CONTRIBUTING.md lacks a room'
    at_import: dict[str, set[str]] = {}
    against, used = [], set()
    for name, path in known.items():
        mine = name.partition('.')[0]
        for target, at_once in imports(name, path, known):
            room = target.partition('.')[0]
            if at_once and target != name:
                at_import.setdefault(name, set()).add(target)
            if rank[room] > rank[mine]:
                if at_once or (mine, room) not in LATER:
                    against.append(f'{name} imports {target}')
                used.add((mine, room))
    assert against == []
    assert set(LATER) == used, 'an exception that nobody needs'
    # Within a room, too, nothing goes round in a circle: this raises if something does.
    assert list(TopologicalSorter(at_import).static_order())
