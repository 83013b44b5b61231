"""A search over a generator's own parameters: successive halving beside random search at its cost or less.

    title: …
    study: {macs: 2.5e+6, recipe: cifar10/study, data: cifar10, model: {stem_stride: 2}}   # keys of a study
    graph: "ws({k},{p})"                        # a random graph model with parameters of the space
    space:                                      # those that the graph does not name are arguments of `randwire`
      k: [2, 4, 6, 8]                           # one of these, or
      p: {low: 0.0, high: 1.0}                  # a number from an interval
      num_nodes: [16, 24, 32]                   # depth against width, as C is tuned to the multiply-adds
    first_epochs: 1                             # candidates train for 1, then 3, then 9 epochs, as long as they are
    reduction: 3                                # among the best third of those that got so far
    rungs: 3
    trials: 18                                  # candidates of halving, and the most that random search may draw
    seeds: [1, 2]                               # a search of its own with each

Candidates come a wave at a time from Optuna's tree-structured Parzen estimator, the first ten at random, and are
stopped by successive halving (Jamieson and Talwalkar, AISTATS 2016): those of a wave go on that are among the best
third (in general, 1 / reduction) of all that have got to their rung, the wave's own included, as in Li et al., "A
System for Massively Parallel Hyperparameter Tuning", MLSys 2020. Each rung trains from the first weights, as the
learning rate falls over its own number of epochs. What is asked and told follows from the seed and the rows alone: a
search that is run again goes through the same candidates and trains what has no row yet. Where a failed one is tried
again, what Optuna asks for after it may change; rows that lie in the place of others are dropped then.
"""
from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from tqdm import tqdm

from ..errors import one_line
from ..files import lock
from ..training.recipes import CONFIGS, packaged_names, read_packaged
from .engines import Engine
from .results import Results, read_results
from .running import begin, forget_failed, run_networks
from .study import AS_WRITTEN, Execution, Network, Study, data_folder, load_generators, study_names
from .work import changed, forget_training, is_row_of

__all__ = ['HALVING', 'RANDOM', 'Search', 'candidates', 'is_search', 'load_search', 'names_search', 'run_search',
           'search_names', 'trained_again', 'winner']

HALVING, RANDOM = 'halving', 'random'
# 1 drew the same candidates for both, 2 let the first of a wave go on whatever it did and had waves of near copies; a
# folder of other draws is of another search.
DRAWS = 3
RESERVED = ('title', 'graphs', 'graph_seeds', 'training_seeds', 'seeds', 'node_ops', 'models', 'detection', 'paper',
            'notes')


@dataclass(frozen=True)
class Search:
    """A search as its file says.

    Args:
        title: One line.
        study: Keys of a study: what every candidate has.
        graph: A random graph model whose parameters are names of the space in braces.
        space: By name a list of choices, or `low` and `high` of a number.
        first_epochs: Epochs of the first rung.
        reduction: By how much the next rung has more, and one of how many gets there.
        rungs: How many rungs there are.
        trials: Candidates of halving, and the most of random search.
        wave: How many are asked for at a time: the next ones know how these did.
        seeds: Of the searches; also of their candidates' graphs and trainings.
        confirm: Seeds of graphs and trainings with which both searches' winners are trained again, for as long as the
            last rung: what a winner had luck with is not in it.
        notes: What a reader has to know.
    """

    title: str
    study: dict[str, Any]
    graph: str
    space: dict[str, Any]
    first_epochs: int = 1
    reduction: int = 3
    rungs: int = 3
    trials: int = 18
    wave: int = 6
    seeds: list[int] = field(default_factory=lambda: [1])
    confirm: list[int] = field(default_factory=list)
    notes: str = ''

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ValueError(f'title must be a line of text, got {self.title!r}')
        for name in ('study', 'space'):
            if not isinstance(getattr(self, name), dict) or not getattr(self, name):
                raise ValueError(f'{name} must hold `key: value`, got {getattr(self, name)!r}')
        own = sorted({*RESERVED} & set(self.study))
        if own:
            raise ValueError(f'study must not have {", ".join(own)}: that is what a search does itself')
        if 'epochs' in self.study.get('settings', {}):
            raise ValueError('settings must not have epochs: those are of the rungs')
        for name, least in (('first_epochs', 1), ('reduction', 2), ('rungs', 1), ('trials', 1), ('wave', 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}')
        for name in ('seeds', 'confirm'):
            values = getattr(self, name)
            if not isinstance(values, list) or any(
                    not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in values):
                raise ValueError(f'{name} must be a list of integers of at least 0, got {values!r}')
            if len(set(values)) < len(values):
                raise ValueError(f'{name} names something twice: {values!r}')
        if not self.seeds:
            raise ValueError('seeds must be one or more')
        for name, choices in self.space.items():
            interval = isinstance(choices, dict) and set(choices) == {'low', 'high'} and all(
                isinstance(end, (int, float)) and not isinstance(end, bool) for end in choices.values())
            if not (interval and choices['low'] < choices['high']) and not (isinstance(choices, list) and choices):
                raise ValueError(f'space: {name} must be a list, or have low and high, got {choices!r}')
        missing = sorted(self._in_graph - set(self.space))
        if missing:
            raise ValueError(f'graph {self.graph!r} asks for {", ".join(missing)}, which space has not')
        # Every candidate is a study; what one of them can say of its keys is said at once.
        _ = self.example

    @property
    def example(self) -> Study:
        """The study of a candidate with the first choices."""
        return self.study_of({name: choices[0] if isinstance(choices, list) else choices['low']
                              for name, choices in self.space.items()}, 1, self.first_epochs)

    @property
    def _in_graph(self) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(self.graph) if name}

    @property
    def epochs(self) -> list[int]:
        """Of the rungs."""
        return [self.first_epochs * self.reduction ** rung for rung in range(self.rungs)]

    @property
    def least_epochs(self) -> int:
        """Of all trainings together, where no more than the best third (1 / reduction) of all at a rung goes on."""
        halving = sum(max(self.trials // self.reduction ** rung, 1) * epochs for rung, epochs in enumerate(self.epochs))
        again = sum(other != seed for seed in self.seeds for other in self.confirm) * self.epochs[-1]
        return 2 * (len(self.seeds) * halving + again)

    def some_candidates(self, number: int) -> tuple[Study, list[Network]]:
        """So many random candidates, which the search need not try, as long as the last rung is.

        Raises:
            ValueError: if hardly any parameters of the space have a network.
        """
        rng, found = random.Random(0), list[Network]()
        for _ in range(10 * number):
            parameters = {
                name: rng.choice(choices) if isinstance(choices, list) else
                round(rng.uniform(choices['low'], choices['high']), 4) for name, choices in self.space.items()}
            try:
                study, network = self.network(f'candidate-{len(found)}', parameters, self.seeds[0], self.epochs[-1])
            except ValueError as error:
                reason = error
                continue
            found.append(network)
            if len(found) == number:
                return study, found
        raise ValueError(f'{10 * number} random candidates gave {len(found)} networks, as {reason}')

    @property
    def sha256(self) -> str:
        """Of all that decides on the results, and on what is drawn at random."""
        decisive = {name: value for name, value in asdict(self).items() if name not in ('title', 'notes', 'study')}
        return hashlib.sha256(json.dumps([decisive, self.example.sha256, DRAWS], sort_keys=True).encode()).hexdigest()

    def study_of(self, parameters: Mapping[str, Any], seed: int, epochs: int) -> Study:
        """The study of one candidate."""
        graph = self.graph.format(**{name: parameters[name] for name in self._in_graph})
        model = {name: value for name, value in parameters.items() if name not in self._in_graph}
        return Study(**{
            **self.study, 'title': self.title, 'graphs': [graph], 'seeds': [seed],
            'model': {**self.study.get('model', {}), **model},
            'settings': {**self.study.get('settings', {}), 'epochs': epochs}})

    def network(self, name: str, parameters: Mapping[str, Any], seed: int, epochs: int) -> tuple[Study, Network]:
        """One candidate at one rung, under an id of its own.

        Raises:
            ValueError: if there is no such network: a graph that N does not allow, multiply-adds that cannot be met.
        """
        study = self.study_of(parameters, seed, epochs)
        network, = study.networks()
        more = ''.join(f', {key} {value}' for key, value in parameters.items() if key not in self._in_graph)
        return study, replace(network, id=f'{name}-e{epochs}', series=f'{network.series}{more}')


def names_search(path_or_name: str | Path) -> bool:
    """Whether this is a search's name, or a file of one, and not a study's."""
    if Path(path_or_name).is_file():
        try:
            data = yaml.safe_load(Path(path_or_name).read_text(encoding='utf-8'))
        except (OSError, ValueError, yaml.YAMLError):
            return False  # who reads it says what is wrong
        return isinstance(data, dict) and {'space', 'graph'} <= data.keys()
    return str(path_or_name) in search_names() and str(path_or_name) not in study_names()


def search_names() -> list[str]:
    """The searches that come with the package, sorted."""
    return packaged_names('searches')


def load_search(path_or_name: str | Path) -> Search:
    """Read a search from a file, or one that comes with the package by its name.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: naming the file and what is wrong in it.
    """
    path, data = read_packaged('search', path_or_name, CONFIGS / 'searches', search_names())
    study = data.get('study')
    if isinstance(study, dict) and study.get('generators'):
        study['generators'] = str((path.parent / str(study['generators'])).resolve())
        load_generators(study['generators'])
    known = [entry.name for entry in fields(Search)]
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        raise ValueError(f'{path}: unknown key {", ".join(map(repr, unknown))}; a search has {", ".join(known)}')
    try:
        search = Search(**data)
        _ = search.sha256  # reads the recipe
    except TypeError as error:
        raise ValueError(f'{path}: {one_line(error)}') from None
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{path}: {error}') from None
    return search


def run_search(search: Search, folder: Path, engine: Engine, data_dir: str | None = None, progress: bool = True,
               execution: Execution = AS_WRITTEN, retry_failed: bool = False) -> Results:
    """Search with each seed, by halving and at random, and train the winners again; go on where there are rows.

    Args:
        search: The search.
        folder: Its output.
        engine: What runs the networks.
        data_dir: See `study.data_folder`.
        progress: Show a bar.
        execution: What this machine runs them with.
        retry_failed: Forget the rows of networks that failed.

    Raises:
        ModuleNotFoundError: if Optuna is missing.
        ValueError, FileNotFoundError, OSError: see `running.run_study`; also if a search has no candidate that trains.
            A row of another network than is asked for is no error here, but dropped.
    """
    import optuna  # noqa: F401 - asked for before anything is written
    data_folder(search.example, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / '.lock', held=f'another run is at work in {folder}'):
        results = Results(folder, search)
        begin(results)
        if retry_failed:
            forget_failed(results)
        with tqdm(unit='network', disable=not progress) as bar:
            run = _Run(search, results, engine, data_dir, execution, bar)
            for seed in search.seeds:
                cost = run.halve(seed)
                if winner(run.rows, HALVING, seed) is None:
                    reasons = [row['reason'] for row in results.rows.values() if row['status'] != 'done']
                    raise ValueError(f'no candidate of the search with seed {seed} could be trained, the last for: '
                                     f'{(reasons or ["no width meets the multiply-adds"])[-1]}; --retry-failed tries '
                                     'them again')
                run.draw(seed, cost)
                run.confirm(seed)
            run.drop(set(results.rows) - run.asked, 'no longer asked for')
            begin(results, {'networks': len(results.rows)})  # it is known only now, and says that this is all
    return results


class _Run:
    def __init__(self, search: Search, results: Results, engine: Engine, data_dir: str | None, execution: Execution,
                 bar: Any) -> None:
        self.search, self.results, self.engine = search, results, engine
        self.data_dir, self.execution, self.bar = data_dir, execution, bar
        self.asked: set[str] = set()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of what was asked for."""
        return [row for name, row in self.results.rows.items() if name in self.asked]

    def drop(self, names: set[str], reason: str) -> None:
        """Forget rows that this search is not made of, and what was trained for them."""
        for name in sorted(names):
            self.bar.write(f'{name}: {reason}, and dropped')
            forget_training(self.results.path.parent, name)
        self.results.forget(names)

    def halve(self, seed: int) -> float:
        """Successive halving; returns what it cost, in multiply-adds of an image times epochs."""
        import optuna
        search = self.search
        # Without a liar a wave would be near copies of one candidate, as its trials do not know of each other.
        found = _quiet_study('TPESampler', seed=seed, constant_liar=True)
        reached: list[list[float]] = [[] for _ in search.epochs]  # by rung, what all that got there did
        cost = 0.0
        while len(found.trials) < search.trials:
            wave = [found.ask() for _ in range(min(search.wave, search.trials - len(found.trials)))]
            running = [(trial, self._suggest(trial)) for trial in wave]
            for rung, epochs in enumerate(search.epochs):
                asked = {trial.number: self._network(f'{HALVING}-{seed}-{trial.number}', parameters, seed, epochs)
                         for trial, parameters in running}
                self._train([pair for pair in asked.values() if pair is not None])
                ended = []
                for trial, parameters in running:
                    row = self._row(asked[trial.number])
                    if row is None or row['status'] != 'done':
                        found.tell(trial, state=optuna.trial.TrialState.FAIL)
                        continue
                    cost += epochs * row['macs']
                    trial.report(row['top1'], epochs)
                    reached[rung].append(row['top1'])
                    ended.append((trial, parameters, row['top1']))
                running = []
                # Optuna's own pruner is told of one after the other: whatever came first would get to the last rung.
                least = _least_to_go_on(reached[rung], search.reduction)
                for trial, parameters, top1 in ended:
                    if rung == search.rungs - 1:
                        found.tell(trial, top1)
                    elif top1 < least:
                        found.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    else:
                        running.append((trial, parameters))
        return cost

    def draw(self, seed: int, cost: float) -> None:
        """Random candidates, all trained as long as the last rung, as many as the cost allows; at least one.

        That is the cost of halving or less, within 5 %: the candidate that would take it further is not trained, and
        no more are drawn than `trials`, which is said. What failed costs nothing, as in halving, and another takes its
        place.
        """
        # Optuna draws the first candidates of halving at random, too: with the same seed they would be these.
        own = random.Random(f'{RANDOM} {seed}').getrandbits(31)
        found = _quiet_study('RandomSampler', seed=own)
        epochs, spent, capped = self.search.epochs[-1], 0.0, False
        while True:
            pairs: list[tuple[Study, Network]] = []
            planned = spent
            while planned < cost and not (capped := len(found.trials) >= self.search.trials):
                trial = found.ask()
                pair = self._network(f'{RANDOM}-{seed}-{trial.number}', self._suggest(trial), seed, epochs)
                if pair is None:
                    continue
                price = epochs * pair[1].macs
                if planned and planned + price > cost * 1.05:  # C is a whole number, and costs equal within that
                    break
                planned += price
                pairs.append(pair)
            self._train(pairs)
            done = [pair for pair in pairs if (row := self._row(pair)) is not None and row['status'] == 'done']
            spent += sum(epochs * network.macs for _, network in done)
            if len(done) == len(pairs):
                break
        if capped:
            self.bar.write(f'{RANDOM}-{seed}: drew as many as trials allows ({self.search.trials}), which cost '
                           f'{spent / cost:.0%} of what halving did')

    def confirm(self, seed: int) -> None:
        """Both winners once more, with the graphs and trainings of other seeds than their own."""
        pairs = []
        for method in (HALVING, RANDOM):
            best = winner(self.rows, method, seed)
            if best is None:
                continue
            model = {name: value for name, value in best['kwargs'].items()
                     if name not in ('graph', 'seed', 'channels', 'node_op')}
            settings = {**self.search.example.settings, 'epochs': self.search.epochs[-1]}
            for other in self.search.confirm:
                if other == seed:
                    continue
                study = replace(
                    self.search.example, graphs=[best['graph']], seeds=[other], model=model, settings=settings)
                name = f'{method}-{seed}-winner-{other}'
                try:
                    network, = study.networks()
                except ValueError as error:  # graphs of this seed that no C brings to the multiply-adds
                    self.bar.write(f'{name}: {error}')
                    continue
                pairs.append((study, replace(network, id=name, series=best['series'])))
        self._train(pairs)

    def _suggest(self, trial: Any) -> dict[str, Any]:
        return {name: trial.suggest_categorical(name, choices) if isinstance(choices, list) else
                round(trial.suggest_float(name, choices['low'], choices['high']), 4)
                for name, choices in self.search.space.items()}

    def _network(self, name: str, parameters: dict[str, Any], seed: int, epochs: int) -> tuple[Study, Network] | None:
        try:
            return self.search.network(name, parameters, seed, epochs)
        except ValueError as error:
            self.bar.write(f'{name}: {error}')
            return None

    def _row(self, pair: tuple[Study, Network] | None) -> dict[str, Any] | None:
        return None if pair is None else self.results.rows.get(pair[1].id)

    def _train(self, pairs: Sequence[tuple[Study, Network]]) -> None:
        if self.search.sha256 != self.results.sha256:
            raise changed(self.search.example)
        self.drop({network.id for study, network in pairs if (row := self.results.rows.get(network.id)) is not None
                   and not is_row_of(row, study, network)}, 'the row of another network')
        self.asked.update(network.id for _, network in pairs)
        run_networks(pairs, self.results, self.engine, self.data_dir, self.execution, self._ended)

    def _ended(self, name: str) -> None:
        row = self.results.rows.get(name)
        if row is not None:
            said = f'top-1 {row["top1"]:.2f} %' if row['status'] == 'done' else row['reason']
            self.bar.write(f'{name}: {row["series"]}: {said}')
            self.bar.update()


def _least_to_go_on(reached: Sequence[float], reduction: int) -> float:
    """What the last of the best `1 / reduction` has that got to a rung, or the best of fewer."""
    return sorted(reached, reverse=True)[max(len(reached) // reduction, 1) - 1] if reached else 0.0


def _quiet_study(sampler: str, **options: Any) -> Any:
    import optuna
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():  # that the liar may change, with which the rows would be dropped and said
            warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(direction='maximize', sampler=getattr(optuna.samplers, sampler)(**options),
                                       pruner=optuna.pruners.NopPruner())
    finally:
        optuna.logging.set_verbosity(before)


def candidates(rows: Iterable[dict[str, Any]], method: str, seed: int) -> list[dict[str, Any]]:
    """Rows of what one search tried, a candidate's at each of its rungs."""
    return [row for row in rows if row['id'].startswith(f'{method}-{seed}-') and '-winner-' not in row['id']]


def winner(rows: Iterable[dict[str, Any]], method: str, seed: int) -> dict[str, Any] | None:
    """The candidate that did best, of those that trained longest."""
    found = [row for row in candidates(rows, method, seed) if row['status'] == 'done']
    return max(found, key=lambda row: (row['epochs'], row['top1']), default=None)


def trained_again(rows: Iterable[dict[str, Any]], method: str, seed: int) -> list[dict[str, Any]]:
    """Rows of the winner with other seeds, as far as they gave a result."""
    return [row for row in rows if row['id'].startswith(f'{method}-{seed}-winner-') and row['status'] == 'done']


def is_search(path: str | Path) -> bool:
    """Whether a folder of results, or a file of them, is a search's."""
    return {'space', 'trials'} <= read_results(path)[0]['spec'].keys()
