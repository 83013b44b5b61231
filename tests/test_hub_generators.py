"""Publishing networks that are wired by a generator of one's own, which whoever loads them does not have."""
from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layers import randomise_

from randwire_zoo import GraphModel
from randwire_zoo.cli import main
from randwire_zoo.hub.checks import load_model
from randwire_zoo.hub.config import from_config
from randwire_zoo.training.evaluation import import_modules
from randwire_zoo.weights.files import save_weights
from randwire_zoo.weights.manifest import read_manifest

MODULE = 'generator_of_ones_own'
CODE = """
from dataclasses import dataclass
from typing import ClassVar
import networkx
from randwire_zoo import GraphModel

@dataclass(frozen=True)
class Star(GraphModel):
    name: ClassVar[str] = 'own_star'

    def undirected(self, num_nodes, rng):
        return networkx.relabel_nodes(networkx.star_graph(num_nodes - 1), dict(enumerate(rng.sample(
            range(num_nodes), num_nodes))))
"""
NETWORK: dict[str, Any] = {'graph': 'own_star()', 'seed': 2, 'channels': 4, 'num_nodes': 6}


@pytest.fixture
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The generator's file can be imported here, and forgotten."""
    (tmp_path / f'{MODULE}.py').write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))

    def forget() -> None:
        GraphModel.registry.pop('own_star', None)
        sys.modules.pop(MODULE, None)

    yield forget
    forget()


@pytest.fixture
def model(forget: Callable[[], None], tmp_path: Path) -> Any:
    """A network of it, whose weights lie in weights.safetensors."""
    import_modules([MODULE])
    model: Any = timm.create_model('randwire', num_classes=3, **NETWORK)
    randomise_(model)
    save_weights(model, tmp_path / 'weights.safetensors')
    forget()
    return model.eval()


def stage(folder: Path, *options: str) -> int:
    return main(['hub', 'stage', str(folder / 'weights.safetensors'), '--tag', 'noise', '--license', 'mit', '--dataset',
                 'noise', '--no-eval', '--img-size', '64', '-o', str(folder / 'staged'), *options, '--model-kwargs',
                 *(f'{name}={value}' for name, value in NETWORK.items())])


@pytest.fixture
def staged(model: Any, forget: Callable[[], None], tmp_path: Path) -> Path:
    """Staged by whoever has the generator; from here on nobody has."""
    assert stage(tmp_path, '--device-modules', MODULE) == 0
    forget()
    return tmp_path / 'staged'


def test_the_generator_is_needed_where_a_network_is_staged_and_named_where_it_is_missing(
        model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (((), "unknown random graph model 'own_star()'"),
                          (('--device-modules', 'no_such_module'), "device_modules: No module named 'no_such_module'")):
        assert stage(tmp_path, *options) == 2
        assert said in capsys.readouterr().err and not (tmp_path / 'staged').exists()


def test_what_is_staged_is_built_from_its_graphs_by_whoever_does_not_have_the_generator(
        staged: Path, model: Any, tmp_path: Path) -> None:
    assert main(['hub', 'push', str(staged), 'someone/star', '--dry-run']) == 0
    images = torch.randn(2, 3, 64, 64)
    built = load_model(staged / 'model.safetensors', from_config(json.loads((staged / 'config.json').read_text())))
    with torch.inference_mode():
        torch.testing.assert_close(built.eval()(images), model(images), rtol=0, atol=0)
    assert built.graphs == model.graphs and built.origin == model.origin
    loaded: Any = timm.create_model(f'local-dir:{staged}', pretrained=True).eval()
    features: Any = timm.create_model(f'local-dir:{staged}', pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
        torch.testing.assert_close(features(images)[-1], model.forward_intermediates(images)[1][-1], rtol=0, atol=0)
    card = (staged / 'README.md').read_text()
    assert '| random graph model | OWN_STAR(), seed 2 |' in card and "'edges'" not in card
    assert 'builds the wiring from the graphs in [config.json](config.json)' in card and 'knows the wiring' not in card
    assert main(['hub', 'manifest', 'add', str(staged), '--manifest', str(tmp_path / 'weights.json')]) == 0
    row = read_manifest(tmp_path / 'weights.json')['randwire.noise']
    assert row.network.create_model(device='meta').graphs == model.graphs
    assert main(['hub', 'manifest', 'check', '--manifest', str(tmp_path / 'weights.json')]) == 0


def test_graphs_that_are_not_those_of_the_weights_are_refused_and_so_is_a_folder_without_them(
        staged: Path, forget: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((staged / 'config.json').read_text())

    def push(**model_args: Any) -> str:
        folder = Path(shutil.copytree(staged, tmp_path / 'changed', dirs_exist_ok=True))
        (folder / 'config.json').write_text(json.dumps({**config, 'model_args': model_args}))
        capsys.readouterr()
        assert main(['hub', 'push', str(folder), 'someone/star', '--dry-run']) == 1
        return capsys.readouterr().err

    arguments = config['model_args']
    graphs = [{**graph, 'edges': graph['edges'][:-1]} for graph in arguments['graphs']]
    assert 'trained on other wiring' in push(**{**arguments, 'graphs': graphs})
    assert 'graph needs at least 1 node' in push(**{**arguments, 'graphs': [{'num_nodes': 0, 'edges': []}] * 3})
    without = {name: value for name, value in arguments.items() if name not in ('graphs', 'origin')}
    assert "unknown random graph model 'own_star()'" in push(**without)
    import_modules([MODULE])
    assert 'names a generator of your own and has no graphs, without which nobody else can build' in push(**without)
