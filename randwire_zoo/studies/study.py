"""What a study is: generators × seeds × node operations under one recipe, read from one yaml file and checked.

    title: Random graph generators on CIFAR-10
    graphs: [er(0.2), ba(5), "ws(4,0.75)"]      # random graph models, see `generators`
    graph_seeds: [1, 2, 3, 4, 5]                # five wirings of each,
    training_seeds: [1, 2]                      # and two trainings of each wiring
    macs: 12.e+6                                # multiply-adds per image that C is tuned for, or `channels: 78`
    model: {num_nodes: 32, stem_stride: 2}      # other arguments of `randwire`
    recipe: cifar10/study                       # as for `randwire-zoo train`
    data: cifar10                               # a folder below --data-dir
"""
from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import timm
from tqdm import tqdm

from ..complexity import count_complexity, count_randwire
from ..errors import one_line
from ..files import cache_folder, read_yaml
from ..graphs import Graph, GraphModel, graphs_sha256, parse_graph_model
from ..models import network_arguments
from ..network import NODE_OPS
from ..training.evaluation import has_split
from ..training.recipes import CONFIGS, DEFAULTS, KEYS, check_settings, load_recipe, packaged_names, read_packaged
from ..weights.description import Description
from ..weights.manifest import sha256_of
from . import baselines  # noqa: F401 - registers them with timm

__all__ = ['AS_WRITTEN', 'Execution', 'Network', 'Study', 'data_folder', 'load_study', 'study_names']

DATA_VARIABLE = 'RANDWIRE_ZOO_DATA'
# The nearest C may miss the target of a small network by this much.
TOLERANCE = 0.15
SMALLEST_WIDTH, LARGEST_WIDTH = 2, 4096
# Arguments of `randwire` that decide on multiply-adds, beside its graphs, C and N.
COUNTED = ('regime', 'node_op', 'stem_stride', 'output_stride', 'global_pool', 'head')
# Keys of later releases, and of a recipe's: a study that does without them is the study that it was.
LATER_SETTINGS = ('train_img_sizes', 'train_size_schedule', 'train_size_schedule_spread', 'train_size_random_mix',
                  'kd_model_name', 'kd_distill_type', 'kd_temperature', 'distill_loss_weight', 'task_loss_weight',
                  'kd_outputs')
# Keys that say which networks there are, and nothing of any one that its own arguments do not say.
WHICH_NETWORKS = ('graphs', 'graph_seeds', 'training_seeds', 'seeds', 'node_ops', 'models', 'model', 'channels', 'macs')
LATER_KEYS = {'graph_seeds': None, 'training_seeds': None, 'processes': 1, 'proxies': 0}
Figures = Callable[[tuple[Graph, ...], int], tuple[int, int]]  # multiply-adds and parameters, by graphs and C


@dataclass(frozen=True)
class Network:
    """One network of a study: a name of timm's and its arguments.

    Args:
        id: Unique within the study, and its folder's name.
        series: What it is an instance of, such as `ws(4,0.75)`: rows of one series make one mean.
        model: Name for timm.
        kwargs: Arguments of the model.
        graph: The random graph model; None for a model that is no random one.
        graph_seed: Seed of the graphs; None likewise.
        training_seed: Seed of the first weights, of the order of the images and of their augmentation.
        node_op: Node operation; None likewise.
        macs: Multiply-adds per image.
        params: Learnable parameters.
    """

    id: str
    series: str
    model: str
    kwargs: dict[str, Any]
    graph: str | None
    graph_seed: int | None
    training_seed: int
    node_op: str | None
    macs: int
    params: int


@dataclass(frozen=True)
class Study:
    """A study as its file says, checked as far as that needs no data.

    Args:
        title: One line.
        recipe: A recipe of `randwire-zoo train`; empty for a study of detectors.
        data: Folder of the data set below the folder of all data.
        graphs: Random graph models.
        graph_seeds: Seeds of the generator: one wiring each.
        training_seeds: Seeds of the training. Every wiring is trained with each; two or more tell what the wiring does
            from what the training does by chance.
        seeds: Instead of both, seeds of graphs and training at once: wiring s is trained once, with seed s, which is
            the paper's way and cannot tell the two apart. 1 … 5 if no seeds are given at all.
        node_ops: Node operations.
        models: Other models of timm's, trained in the same way.
        model: Further arguments of `randwire`, the same for all.
        channels: C, or several, which makes one series of each; or
        macs: the multiply-adds that C is tuned for, separately for each random graph model and node operation.
        settings: Overrides of the recipe.
        eval_sizes: Further image sizes at which the trained networks are evaluated.
        damage: Remove every node and every edge in turn from each trained network; the number of test images that the
            loss in accuracy is measured on.
        proxies: Predict accuracies from the first weights, see `proxies`; the number of training images that they take.
        processes: How many processes train one network together, each on a GPU of its own where there are any; each
            takes `batch_size` images of a minibatch, or of a detector its share of SOLVER.IMS_PER_BATCH.
        detection: A detectron2 `config`, a file or one of the package's configs, and `overrides` of it, that fine-tune
            `models` instead of the recipe; in both `{model}` stands for the model's name.
        generators: The user's own Python file with further random graph models, beside the study's file.
        paper: Figures of the paper by series, to stand beside the measured ones.
        notes: What a reader has to know: cost, limits.
    """

    title: str
    recipe: str = ''
    data: str = ''
    graphs: list[str] = field(default_factory=list)
    graph_seeds: list[int] | None = None
    training_seeds: list[int] | None = None
    seeds: list[int] | None = None
    node_ops: list[str] = field(default_factory=lambda: ['sep_conv'])
    models: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    channels: int | list[int] | None = None
    macs: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    eval_sizes: list[int] = field(default_factory=list)
    damage: int = 0
    proxies: int = 0
    processes: int = 1
    detection: dict[str, Any] = field(default_factory=dict)
    generators: str = ''
    paper: dict[str, Any] = field(default_factory=dict)
    notes: str = ''

    def __post_init__(self) -> None:
        for name in ('title', 'recipe', 'data', 'generators', 'notes'):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f'{name} must be text, got {getattr(self, name)!r}')
        if not self.title.strip():
            raise ValueError('title must be a line of text')
        if self.seeds is None and self.graph_seeds is None and self.training_seeds is None:
            object.__setattr__(self, 'seeds', [1, 2, 3, 4, 5])
        seeds = [name for name in ('seeds', 'graph_seeds', 'training_seeds') if getattr(self, name) is not None]
        for name, kind in (('graphs', str), *((name, int) for name in seeds), ('node_ops', str), ('models', str),
                           ('eval_sizes', int)):
            values = getattr(self, name)
            if not isinstance(values, list) or any(
                    not isinstance(value, kind) or isinstance(value, bool) for value in values):
                raise ValueError(f'{name} must be a list of {"text" if kind is str else "integers"}, got {values!r}')
            if len(set(values)) < len(values):
                raise ValueError(f'{name} names something twice: {values!r}')
        for name in ('model', 'settings', 'detection', 'paper'):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f'{name} must hold `key: value`, got {getattr(self, name)!r}')
        if not self.graphs and not self.models:
            raise ValueError('a study needs graphs or models')
        for name in seeds:
            values = getattr(self, name)
            if not values or any(seed < 0 for seed in values):
                raise ValueError(f'{name} must be one or more integers of at least 0, got {values!r}')
        if 'seeds' in seeds and len(seeds) > 1:
            raise ValueError('seeds are those of graphs and trainings at once: give either seeds, or graph_seeds and '
                             'training_seeds')
        if 'graph_seeds' in seeds and not self.graphs:
            raise ValueError('graph_seeds are for graphs, and the study has none')
        if self.seeds is None and (self.training_seeds is None or (self.graphs and self.graph_seeds is None)):
            raise ValueError('graph_seeds and training_seeds go together: with one of them alone there is no network')
        for size in self.eval_sizes:
            if size < 1:
                raise ValueError(f'eval_sizes must be at least 1, got {size}')
        for operation in self.node_ops:
            if operation not in NODE_OPS:
                raise ValueError(f'node_ops must be among {", ".join(NODE_OPS)}, got {operation!r}')
        for name in ('damage', 'proxies'):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f'{name} must be a number of images, got {count!r}')
        if self.proxies == 1:
            raise ValueError('proxies compare images with each other: they need 2 or more, got 1')
        if not isinstance(self.processes, int) or isinstance(self.processes, bool) or self.processes < 1:
            raise ValueError(f'processes must be an integer of at least 1, got {self.processes!r}')
        if self.graphs and (self.macs is None) == (self.channels is None):
            raise ValueError('a study with graphs needs either macs or channels')
        for width in self.widths:
            if not isinstance(width, int) or isinstance(width, bool) or width < 2:
                raise ValueError(f'channels must be an integer of at least 2, or a list of such, got {self.channels!r}')
        if self.macs is not None and (
                isinstance(self.macs, bool) or not isinstance(self.macs, (int, float)) or not self.macs > 0):
            raise ValueError(f'macs must be a positive number (in yaml: 12.e+6), got {self.macs!r}')
        own = {'graph', 'seed', 'node_op', 'channels'} & set(self.model)
        if own:
            raise ValueError(f'model must not set {", ".join(sorted(own))}: that is what a study does itself')
        if self.detection:
            if self.graphs or not isinstance(self.detection.get('config'), str):
                raise ValueError('detection needs config, a detectron2 yaml file, and models instead of graphs')
            if self.proxies:
                raise ValueError('proxies are for networks that a recipe trains, not for detection')
            unknown = set(self.detection) - {'config', 'overrides'}
            if unknown:
                raise ValueError(f'detection takes config and overrides, got {", ".join(sorted(unknown))}')
        elif not self.recipe:
            raise ValueError('a study needs a recipe')
        reserved = {'data_dir', 'model', 'model_kwargs', 'output', 'experiment', 'resume', 'seed'} & set(self.settings)
        if reserved:
            raise ValueError(f'settings must not have {", ".join(sorted(reserved))}: that is what a study does itself')
        check_settings(self.settings)

    @property
    def trainings(self) -> list[int]:
        """The seeds of the training."""
        return (self.training_seeds if self.seeds is None else self.seeds) or []

    @property
    def seed_pairs(self) -> list[tuple[int, int]]:
        """Seed of the graphs and seed of the training, of each network of a random graph model."""
        if self.seeds is not None:
            return [(seed, seed) for seed in self.seeds]
        return list(itertools.product(self.graph_seeds or [], self.trainings))

    @property
    def widths(self) -> list[int]:
        """The given C, if any."""
        return [] if self.channels is None else self.channels if isinstance(self.channels, list) else [self.channels]

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """The recipe with the study's overrides and the defaults of everything else.

        How images are fed is what a recipe may leave to each model. Here all get what a RandWire network would: they
        would not be compared at equal multiply-adds otherwise.
        """
        settings = self._written_settings
        fed = Description.from_settings({**settings, 'model': 'randwire', 'model_kwargs': {}}).data_config()
        if settings['input_size'] is None and settings['img_size'] is None:
            settings['img_size'] = fed['input_size'][-1]
        return {**settings, **{name: list(fed[name]) if isinstance(fed[name], tuple) else fed[name] for name in (
            'crop_pct', 'mean', 'std', 'interpolation') if settings[name] in (None, '')}}

    @property
    def _written_settings(self) -> dict[str, Any]:
        return {**DEFAULTS, **load_recipe(self.recipe), **check_settings(self.settings)}

    @property
    def sha256(self) -> str:
        """Of all that decides on the results: two files with the same wording in other words are the same study."""
        return _sha256(self._decisive)

    def network_sha256(self, network: Network) -> str:
        """Of all that decides on one network's row, whatever other networks the study has."""
        decisive = {name: value for name, value in self._decisive.items() if name not in WHICH_NETWORKS}
        return _sha256([decisive, {name: value for name, value in asdict(network).items() if name != 'series'}])

    def snapshot(self) -> Study:
        """The same study, which reads the files that it names once, and not again for every network.

        What its sha256 and those of its networks say is of one moment, whatever becomes of the files.
        """
        return _Snapshot(**{entry.name: getattr(self, entry.name) for entry in fields(self)})

    @property
    def _decisive(self) -> dict[str, Any]:
        decisive = {name: value for name, value in asdict(self).items() if name not in ('title', 'paper', 'notes')
                    and not (name in LATER_KEYS and value == LATER_KEYS[name])}
        if self.generators:  # what the file says, wherever it lies
            decisive['generators'] = hashlib.sha256(Path(self.generators).read_bytes()).hexdigest()
        if configs := self._own_detector_configs():
            decisive['detection'] = {**self.detection, 'configs': configs}
        if self.recipe:
            # On either kernels accuracies are equal but for noise, and each row says on which they were.
            decisive['recipe'] = {name: value for name, value in self._written_settings.items()
                                  if name in KEYS and name not in ('cache_images', 'kernels')
                                  and not (name in LATER_SETTINGS and value == DEFAULTS[name])}
        return decisive

    def detector_config(self, model: str) -> Path:
        """The detectron2 config of a model: a file, or one of the package's."""
        name = self.detection['config'].replace('{model}', model)
        return Path(name) if Path(name).is_file() else CONFIGS / name

    def _own_detector_configs(self) -> list[str]:
        """The sha256 of the user's own detectron2 configs, each followed by those that it is based on.

        The package's are as old as the package, whose version every row has.
        """
        found = []
        left = [self.detector_config(model) for model in self.models] if self.detection else []
        while left:
            path = left.pop(0)
            if path.is_file() and not path.resolve().is_relative_to(CONFIGS.resolve()):
                found.append(sha256_of(path))
                bases = (read_yaml(path) or {}).get('_BASE_') or []
                left[:0] = [path.parent / base for base in ([bases] if isinstance(bases, str) else bases)]
        return found

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that networks are trained on."""
        settings = self.recipe_settings
        if settings['input_size']:
            channels, height, width = settings['input_size']
            return channels, height, width
        return settings['in_chans'] or 3, settings['img_size'], settings['img_size']

    def networks(self, progress: bool = False) -> list[Network]:
        """Every network that the study asks for, with C tuned: series by series, wiring by wiring.

        A generator whose graphs do not depend on the seed, such as WS(K, 0), has one wiring. With `training_seeds` it
        is trained once with each of them, and not as often again as there are `graph_seeds`.

        Args:
            progress: Show a bar.

        Raises:
            ValueError: if a random graph model is unknown or does not allow N, or the multiply-adds cannot be met.
        """
        found: list[Network] = []
        series_of_graphs = list(itertools.product(self.node_ops, self.graphs))
        # None: shown on a terminal. Closed in any case, so that an error has its line for itself.
        with tqdm(total=len(series_of_graphs), desc='counting multiply-adds', unit='series', leave=False,
                  disable=None if progress else True) as bar:
            for operation, graph in series_of_graphs:
                found += self._networks_of(graph, operation)
                bar.update()
        for name in self.models:
            if name not in timm.list_models():
                raise ValueError(f'timm has no model {name!r}')
            figures = (0, 0) if self.detection else self._count(name, {})
            for seed in self.trainings:
                found.append(Network(_slug(f'{name} {"t" if self.seeds is None else "s"}{seed}'), name, name, {}, None,
                                     None, seed, None, *figures))
        names = [network.id for network in found]
        for network in found:
            if names.count(network.id) > 1:
                raise ValueError(f'the study names the same network twice: {network.series!r}')
        return found

    def one_wiring(self, networks: list[Network]) -> list[str]:
        """The series of `networks()` that have one graph seed though the study asks for more: all give one wiring."""
        seeds: dict[str, set[int | None]] = {}
        for network in networks:
            if network.graph is not None:
                seeds.setdefault(network.series, set()).add(network.graph_seed)
        return [series for series, found in seeds.items() if len(found) == 1 < len(self.graph_seeds or [])]

    def _networks_of(self, graph: str, operation: str) -> list[Network]:
        found = []
        kwargs = {**self.model, 'graph': str(parse_graph_model(graph)), 'node_op': operation}
        pairs = self.seed_pairs
        wirings = {seed: _sample(json.dumps({**kwargs, 'seed': seed}, sort_keys=True)) for seed, _ in pairs}
        if self.seeds is None and len({graphs_sha256(graphs) for graphs in wirings.values()}) == 1:
            pairs = [pair for pair in pairs if pair[0] == pairs[0][0]]
        if graph == self.graphs[0]:
            # Counted once for real for each node operation: timm knows the arguments, and the figures are those.
            arguments = {**kwargs, 'seed': pairs[0][0], 'channels': (self.widths or [SMALLEST_WIDTH])[0]}
            counted = self._count('randwire', arguments)
            assert self._figures(kwargs)(wirings[pairs[0][0]], arguments['channels']) == counted, (arguments, counted)
        figures = self._figures(kwargs)
        widths = self.widths or [self._tuned_channels(figures, kwargs, list(wirings.values()))]
        for channels in widths:
            series = graph if self.node_ops == ['sep_conv'] else f'{graph} {operation}'
            if len(widths) > 1:
                series += f' C={channels}'
            for graph_seed, training_seed in pairs:
                name = f's{graph_seed}' if self.seeds is not None else f'g{graph_seed} t{training_seed}'
                found.append(Network(
                    _slug(f'{series} {name}'), series, 'randwire',
                    {**kwargs, 'seed': graph_seed, 'channels': channels}, graph, graph_seed, training_seed, operation,
                    *figures(wirings[graph_seed], channels)))
        return found

    def _tuned_channels(self, figures: Figures, kwargs: dict[str, Any], wirings: list[tuple[Graph, ...]]) -> int:
        """C for which the mean over the wirings is nearest to the target."""
        assert self.macs is not None

        def mean(channels: int) -> float:
            return statistics.mean(figures(wiring, channels)[0] for wiring in wirings)

        # The first C that does not fall short of it, or the one before.
        target, low, high = self.macs, SMALLEST_WIDTH, LARGEST_WIDTH
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if mean(middle) >= target else (middle + 1, high)
        best = min((max(low - 1, SMALLEST_WIDTH), low), key=lambda channels: abs(mean(channels) - target))
        if abs(mean(best) / self.macs - 1) > TOLERANCE:
            raise ValueError(f'macs of {self.macs:.4g} cannot be met by {kwargs["graph"]} with {kwargs["node_op"]}: '
                             f'the nearest is C={best} with {mean(best):.4g}')
        return best

    def _figures(self, kwargs: dict[str, Any]) -> Figures:
        """What gives multiply-adds and parameters of a RandWire network by its graphs and C, from its shapes."""
        counted = {'regime': 'small', **{name: kwargs[name] for name in COUNTED if name in kwargs}}
        size, classes = self.input_size, self.recipe_settings['num_classes'] or 1000

        def figures(graphs: tuple[Graph, ...], channels: int) -> tuple[int, int]:
            found = count_randwire(graphs, channels=channels, input_size=size, num_classes=classes, **counted)
            return found.macs, found.params
        return figures

    def _count(self, name: str, kwargs: dict[str, Any]) -> tuple[int, int]:
        size = self.input_size
        classes = self.recipe_settings['num_classes']
        return _count(name, json.dumps(kwargs, sort_keys=True), size, classes)


class _Snapshot(Study):
    """A study as it was when it was first asked what decides on its results."""

    @cached_property
    def _decisive(self) -> dict[str, Any]:
        return super()._decisive


@cache
def _sample(kwargs: str) -> tuple[Graph, ...]:
    """The graphs of a `randwire` network; they do not depend on C."""
    arguments = json.loads(kwargs)
    try:
        return tuple(network_arguments('randwire', **arguments)['graphs'])
    except ValueError:
        raise
    except Exception as error:  # a generator of the user's own may raise anything
        raise ValueError(f'cannot sample {arguments["graph"]}: {type(error).__name__}: {one_line(error)}') from error


@cache
def _count(name: str, kwargs: str, input_size: tuple[int, int, int], classes: int | None) -> tuple[int, int]:
    """Multiply-adds and parameters."""
    arguments = json.loads(kwargs)
    if classes:
        arguments['num_classes'] = classes
    try:
        model = timm.create_model(name, in_chans=input_size[0], device='meta', **arguments)
        figures = count_complexity(model, input_size)
    except ValueError:
        raise
    except Exception as error:  # whatever timm, the model or the user's own generator makes of its arguments
        raise ValueError(f'cannot make {name} with {arguments}: {type(error).__name__}: {one_line(error)}') from error
    return figures.macs, figures.params


def graphs_of(network: Network) -> tuple[Graph, ...]:
    """The graphs of a network's stages; none for a model that is no RandWire network."""
    if not network.model.startswith('randwire'):
        return ()
    return tuple(network_arguments(network.model, **network.kwargs)['graphs'])


def wiring_of(network: Network) -> str | None:
    """The sha256 of a network's graphs."""
    graphs = graphs_of(network)
    return graphs_sha256(graphs) if graphs else None


def study_names() -> list[str]:
    """The studies that come with the package, sorted."""
    return packaged_names('studies')


@dataclass(frozen=True)
class Execution:
    """What a machine runs a study's trainings with: it decides on their time and, but for noise, not on what comes out.

    So it is no part of the study, rows of several may stand in one file, and every row says which it had.

    Args:
        kernels: 'torch' or 'native', see `kernels.library.chosen`; None: what the recipe says.
        amp: Mixed precision or not; None: what the recipe says.
    """

    kernels: str | None = None
    amp: bool | None = None

    def settings(self, study: Study) -> dict[str, Any]:
        """The recipe of a study of classifiers with these instead of its own."""
        return {**study.recipe_settings, **{name: value for name, value in asdict(self).items() if value is not None}}


AS_WRITTEN = Execution()


def load_study(path_or_name: str | Path) -> Study:
    """Read a study from a file, or one that comes with the package by its name.

    Raises:
        FileNotFoundError: if there is neither; also if its generators' file is missing.
        ValueError: naming the file and what is wrong in it.
    """
    path, data = read_packaged('study', path_or_name, CONFIGS / 'studies', study_names())
    known = [entry.name for entry in fields(Study)]
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        raise ValueError(f'{path}: unknown key {", ".join(map(repr, unknown))}; a study has {", ".join(known)}')
    if data.get('generators'):
        data['generators'] = str((path.parent / str(data['generators'])).resolve())
        load_generators(data['generators'])
    try:
        study = Study(**data)
        for graph in study.graphs:
            parse_graph_model(graph)
        _ = study.sha256  # reads the recipe
        if study.recipe and not study.recipe_settings['val_split']:
            raise ValueError('val_split must name the images that the networks are measured on')
    except TypeError as error:
        raise ValueError(f'{path}: {one_line(error)}') from None
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{path}: {error}') from None
    return study


def load_generators(path: str) -> None:
    """Run the user's file, whose subclasses of `GraphModel` register themselves.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it fails, has no random graph model in it, or one with the name of another.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no file {path}, which should hold random graph models')
    # Of two files with one name, neither is to be taken for the other.
    place = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f'randwire_zoo_generators_{_slug(Path(path).stem)}_{place}', path)
    assert spec is not None and spec.loader is not None
    before = set(GraphModel.registry.values())
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f'{path}: {type(error).__name__}: {one_line(error)}') from error
    if set(GraphModel.registry.values()) == before:
        raise ValueError(f'{path} defines no subclass of randwire_zoo.GraphModel')


def data_folder(study: Study, data_dir: str | None) -> Path:
    """Where the data of a study lies.

    Args:
        study: The study.
        data_dir: The folder of the data set, or of all data sets (for detectors always of all); by default
            $RANDWIRE_ZOO_DATA, and then ~/.cache/randwire_zoo/data.

    Raises:
        FileNotFoundError: if it, or one of its splits by whatever name timm finds it, is missing.
    """
    root = Path(data_dir or os.environ.get(DATA_VARIABLE) or cache_folder() / 'data')
    if study.detection:  # detectron2 wants the folder above it, and looks for the rest itself
        folder, needed = root, [study.data]
    else:
        folder = root / study.data if (root / study.data).is_dir() else root
        settings = study.recipe_settings
        needed = [] if settings['dataset'] else [settings['train_split'], settings['val_split']]
    missing = [split for split in needed if not has_split(folder, split)]
    if not folder.is_dir() or missing:
        what = f'{folder} has no folder {" and no ".join(missing)}' if folder.is_dir() else f'no folder {folder}'
        made = f'; randwire-zoo data {study.data} FOLDER makes one' if study.data in ('cifar10', 'mnist') else ''
        raise FileNotFoundError(
            f'the study needs the data set {study.data!r}: {what}; name its folder with --data-dir{made}')
    return folder


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-')
