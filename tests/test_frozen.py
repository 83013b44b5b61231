"""Frozen graphs: every registered name reads its wiring from a file, and a check compares it with the generator."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from randwire_zoo.freeze import check_frozen, write_frozen
from randwire_zoo.frozen import FOLDER, frozen_names, load_graphs, read_graphs
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.models import ARCHITECTURES, Architecture, sample_architecture
from randwire_zoo.network import stage_node_counts

SEEDED_FAMILIES = [
    [f'randwire_{family}_small_s{seed}' for seed in range(1, 6)] for family in ('ws', 'er', 'ba')
] + [
    [f'randwire_ws_c{channels}' + (f'_s{seed}' if seed > 1 else '') for seed in range(1, 6)] for channels in (109, 154)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / 'frozen', ignore=shutil.ignore_patterns('*.py', '__pycache__')))


def test_every_registered_name_has_a_file_and_every_file_a_name() -> None:
    assert frozen_names() == sorted(ARCHITECTURES)
    assert set(sum(SEEDED_FAMILIES, ['randwire_ws_pico'])) == set(ARCHITECTURES)


def test_the_installed_networkx_samples_the_frozen_graphs_again() -> None:
    assert check_frozen() == []


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_a_file_says_what_it_was_sampled_from(name: str) -> None:
    data = json.loads((FOLDER / f'{name}.json').read_text(encoding='utf-8'))
    architecture = ARCHITECTURES[name]
    graphs = load_graphs(name)
    assert (data['graph'], data['seed'], data['sha256']) == (
        architecture.graph, architecture.seed, graphs_sha256(graphs))
    assert tuple(graph.num_nodes for graph in graphs) == stage_node_counts(architecture.regime, architecture.num_nodes)


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_every_stage_of_a_network_is_wired_by_another_graph(name: str) -> None:
    graphs = load_graphs(name)
    assert len({graph.sha256 for graph in graphs}) == len(graphs) == (4 if '_c1' in name else 3)


@pytest.mark.parametrize('names', SEEDED_FAMILIES, ids=lambda names: names[0])
def test_the_five_seeds_of_a_generator_are_fifteen_or_twenty_different_graphs(names: list[str]) -> None:
    assert [ARCHITECTURES[name].seed for name in names] == [1, 2, 3, 4, 5]
    assert len({ARCHITECTURES[name].graph for name in names}) == 1
    graphs = [graph.sha256 for name in names for graph in load_graphs(name)]
    assert len(set(graphs)) == len(graphs)


def test_c109_and_c154_of_one_seed_are_the_same_wiring_at_two_widths() -> None:
    for narrow, wide in zip(*SEEDED_FAMILIES[3:], strict=True):
        assert load_graphs(narrow) == load_graphs(wide)


def alter(path: Path, text: str, replacement: str) -> None:
    content = path.read_text(encoding='utf-8')
    assert text in content
    path.write_text(content.replace(text, replacement, 1), encoding='utf-8')


def test_the_check_notices_one_altered_edge(folder: Path) -> None:
    path = folder / 'randwire_ws_pico.json'
    graph = read_graphs(path)[0]
    source, target = graph.edges[-1]
    other = next(node for node in range(target) if node not in graph.predecessors[target])
    alter(path, f'[{source},{target}]', f'[{other},{target}]')
    [problem] = check_frozen(folder)
    assert 'randwire_ws_pico.json has been altered' in problem


def test_the_check_notices_an_edge_altered_together_with_its_sha256(folder: Path) -> None:
    path = folder / 'randwire_ws_pico.json'
    other = sample_architecture(Architecture(seed=9, num_nodes=16))
    data = {'graph': 'ws(4,0.75)', 'seed': 1, 'sha256': graphs_sha256(other)}
    path.write_text(json.dumps({**data, 'stages': [graph.to_dict() for graph in other]}), encoding='utf-8')
    problems = check_frozen(folder)
    assert len(problems) == 3
    assert problems[0].startswith(f'randwire_ws_pico: graph 1 is frozen as {other[0].sha256[:12]}, but sampled as ')
    path.write_text(
        json.dumps({**data, 'sha256': graphs_sha256(other[:2]), 'stages': [graph.to_dict() for graph in other[:2]]}),
        encoding='utf-8')
    assert 'randwire_ws_pico: 2 graphs are frozen, but 3 sampled' in check_frozen(folder)


@pytest.mark.parametrize('content', ['', '{', '[]', '{"stages": []}', '{"sha256": "", "stages": [{"num_nodes": 0}]}'])
def test_the_check_names_a_file_that_is_not_readable(folder: Path, content: str) -> None:
    (folder / 'randwire_ws_pico.json').write_text(content, encoding='utf-8')
    [problem] = check_frozen(folder)
    assert problem.startswith('randwire_ws_pico: randwire_ws_pico.json is no file of frozen graphs: ')


def test_the_check_notices_missing_and_stray_files(folder: Path) -> None:
    (folder / 'randwire_ws_pico.json').rename(folder / 'randwire_ws_nano.json')
    missing, stray = check_frozen(folder)
    assert missing.startswith('randwire_ws_pico: ') and 'No such file' in missing
    assert stray == 'randwire_ws_nano.json: no model of this name is registered'


def test_freezing_writes_what_is_missing_and_never_rewrites_a_file(folder: Path) -> None:
    expected = (folder / 'randwire_ws_pico.json').read_bytes()
    (folder / 'randwire_ws_pico.json').unlink()
    (folder / 'randwire_ws_c109.json').write_text('frozen', encoding='utf-8')
    assert write_frozen(folder) == [folder / 'randwire_ws_pico.json']
    assert (folder / 'randwire_ws_pico.json').read_bytes() == expected
    assert (folder / 'randwire_ws_c109.json').read_text(encoding='utf-8') == 'frozen'


def test_a_name_without_frozen_graphs_is_refused_with_those_there_are() -> None:
    expected = r"no frozen graphs for 'randwire_ws_small_s6'; there are .*randwire_ws_small_s5"
    with pytest.raises(ValueError, match=expected):
        load_graphs('randwire_ws_small_s6')
