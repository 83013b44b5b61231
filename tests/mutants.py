"""Mutation testing (`make mutants`): break the code in one place after another and see whether its tests notice.

The changes are those of mutmut's operators. Mutmut's own runner is not used: it puts all mutants of a function into one
file behind switches, which TorchScript and torch.compile cannot read, and it knows nothing of packages that lie beside
their parent (`tool.setuptools.package-dir`). Here a mutant is a whole source file in a copy of the project; one process
has imported everything that the tests import from elsewhere (torch and timm take seconds), and forks for every mutant a
child that imports the project and runs those tests that reach the changed line, fastest first, until one fails.

`tests/survivors.yaml` names the mutants that no test kills, with the reason of each: `equivalent` where the program
still does the same, `accepted` where it does not and no test is worth it. A survivor that is not named there, or a name
that survives no more, is reported, and the exit status is 1. `tests/mutants.json` keeps the numbers, of files that are
still mutated and commits that git still knows.

Left alone are imports, annotations, `__all__`, what error messages and --help say, the encoding of files, which only
shows where the locale is no UTF-8, and `strict` of zip, an assertion that holds; False as an argument is not made None;
a string is altered in one way, not in three.
"""
from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import json
import os
import pickle
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
BUILD = ROOT / 'build' / 'mutants'
TREE = BUILD / 'tree'
BASELINE = BUILD / 'baseline.pickle'
VERDICTS = BUILD / 'verdicts.jsonl'  # of earlier runs, so that a killed mutant is not run again
SURVIVORS = ROOT / 'tests' / 'survivors.yaml'
SUMMARY = ROOT / 'tests' / 'mutants.json'
BESIDE = ('configs', 'detection', 'hub')  # packages of randwire_zoo that lie beside it
ALONE = ('encoding', 'strict', 'help', 'metavar', 'epilog')  # arguments

# What is mutated, and the tests that answer for it.
MODULES: dict[str, list[str]] = {
    'randwire_zoo/__main__.py': ['test_cli'],
    'randwire_zoo/graphs.py': ['test_graphs', 'test_frozen'],
    'randwire_zoo/architectures.py': ['test_frozen', 'test_models', 'test_cli'],
    'randwire_zoo/frozen/__init__.py': ['test_frozen'],
    'randwire_zoo/freeze.py': ['test_frozen', 'test_cli'],
    'randwire_zoo/aggregation.py': ['test_network', 'test_models', 'test_operators'],
    'randwire_zoo/network.py': ['test_network', 'test_models', 'test_operators', 'test_ordering'],
    'randwire_zoo/complexity.py': ['test_models', 'test_studies'],
    'randwire_zoo/deployment.py': ['test_deployment'],
    'randwire_zoo/models.py': ['test_models', 'test_description', 'test_manifest'],
    'randwire_zoo/cli.py': ['test_cli', 'test_kernel_choice'],
    'randwire_zoo/interrupts.py': ['test_cli'],
    'randwire_zoo/files.py': ['test_files', 'test_drawing', 'test_kernel_build', 'test_quickstart', 'test_recipes',
                              'test_training'],
    'randwire_zoo/weights/mark.py': ['test_network', 'test_weights', 'test_models'],
    'randwire_zoo/errors.py': ['test_weights'],
    'randwire_zoo/weights/errors.py': ['test_weights'],
    'randwire_zoo/weights/files.py': ['test_weights'],
    'randwire_zoo/weights/manifest.py': ['test_manifest', 'test_hub'],
    'randwire_zoo/weights/description.py': ['test_description', 'test_hub_generators'],
    'randwire_zoo/ordering.py': ['test_ordering'],
    'randwire_zoo/provenance.py': ['test_provenance'],
    **{f'randwire_zoo/drawing/{name}.py': ['test_drawing'] for name in (
        'cli', 'curves', 'predictions', 'themes', 'wiring')},
    'randwire_zoo/drawing/arguments.py': ['test_drawing', 'test_cli'],
    'randwire_zoo/drawing/detections.py': ['test_detection_images'],
    'randwire_zoo/training/archives.py': ['test_datasets', 'test_boxes'],
    'randwire_zoo/training/arguments.py': ['test_cli', 'test_datasets', 'test_distillation', 'test_evaluation',
                                           'test_linear_probe', 'test_quickstart', 'test_training'],
    'randwire_zoo/training/boxes.py': ['test_boxes', 'test_datasets'],
    'randwire_zoo/training/confusion.py': ['test_evaluation'],
    'randwire_zoo/training/datasets.py': ['test_datasets'],
    'randwire_zoo/training/digits.py': ['test_quickstart'],
    'randwire_zoo/training/distillation.py': ['test_distillation'],
    'randwire_zoo/training/evaluation.py': ['test_evaluation', 'test_datasets', 'test_distillation',
                                            'test_linear_probe', 'test_training'],
    'randwire_zoo/training/images.py': ['test_datasets', 'test_training', 'test_distillation'],
    'randwire_zoo/training/linear_probe.py': ['test_linear_probe'],
    'randwire_zoo/training/quickstart.py': ['test_quickstart'],
    'randwire_zoo/training/recipes.py': ['test_recipes', 'test_description', 'test_training'],
    'randwire_zoo/training/trainer.py': ['test_training', 'test_training_steps', 'test_distillation'],
    'randwire_zoo/studies/analysis.py': ['test_study_report'],
    'randwire_zoo/studies/arguments.py': ['test_cli', 'test_studies', 'test_study_search'],
    'randwire_zoo/studies/baselines.py': ['test_studies'],
    'randwire_zoo/studies/cli.py': ['test_studies', 'test_study_search'],
    'randwire_zoo/studies/cost.py': ['test_studies'],
    'randwire_zoo/studies/damage.py': ['test_damage'],
    'randwire_zoo/studies/engines.py': ['test_studies', 'test_study_survival'],
    'randwire_zoo/studies/measures.py': ['test_study_measures'],
    'randwire_zoo/studies/page.py': ['test_study_report', 'test_study_search'],
    'randwire_zoo/studies/plots.py': ['test_study_report'],
    'randwire_zoo/studies/processes.py': ['test_study_survival'],
    'randwire_zoo/studies/proxies.py': ['test_study_proxies'],
    'randwire_zoo/studies/report.py': ['test_study_report'],
    'randwire_zoo/studies/results.py': ['test_study_identity', 'test_study_survival', 'test_study_report'],
    'randwire_zoo/studies/running.py': ['test_studies', 'test_study_identity', 'test_study_survival'],
    'randwire_zoo/studies/search.py': ['test_study_search'],
    'randwire_zoo/studies/search_report.py': ['test_study_search', 'test_study_report'],
    'randwire_zoo/studies/study.py': ['test_studies', 'test_study_identity', 'test_study_search'],
    'randwire_zoo/studies/work.py': ['test_studies', 'test_study_identity', 'test_study_measures',
                                     'test_study_survival'],
    'randwire_zoo/kernels/build.py': ['test_kernel_build'],
    'randwire_zoo/kernels/library.py': ['test_kernels', 'test_operators', 'test_kernel_build', 'test_kernel_choice'],
    'randwire_zoo/kernels/native.py': ['test_kernels', 'test_operators', 'test_operators_property'],
    'randwire_zoo/kernels/operators.py': ['test_kernels', 'test_operators', 'test_operators_property'],
    'randwire_zoo/kernels/stages.py': ['test_kernels', 'test_operators', 'test_operators_property'],
    'detection/__init__.py': ['test_detection_detectors'],
    'detection/arguments.py': ['test_cli', 'test_detection_convert', 'test_detection_images', 'test_detection_weights'],
    'detection/convert.py': ['test_detection_checkpoints', 'test_detection_classes', 'test_detection_convert',
                             'test_detection_weights'],
    'detection/weights.py': ['test_detection_weights', 'test_detection_checkpoints'],
    'detection/detectron2/backbone.py': ['test_detection_backbone'],
    'detection/detectron2/builders.py': ['test_detection_backbone'],
    'detection/detectron2/checkpoints.py': ['test_detection_checkpoints'],
    'detection/detectron2/datasets.py': ['test_detection_classes', 'test_detection_datasets'],
    'detection/torchvision/detect.py': ['test_detection_detectors', 'test_detection_images'],
    'detection/torchvision/detectors.py': ['test_detection_classes', 'test_detection_convert',
                                           'test_detection_detectors', 'test_detection_files'],
    'detection/torchvision/images.py': ['test_detection_images'],
    **{f'hub/{name}.py': ['test_manifest', 'test_hub', 'test_hub_generators', 'test_cards', 'test_runs'] for name in (
        'arguments', 'card', 'checks', 'cli', 'config', 'probe', 'publishing', 'runs', 'staging')},
    'hub/transfer.py': ['test_transfer'],
}
# What is not mutated, and why.
EXCUSED = {
    **{f'{name}/__init__.py': 'says what is in the folder, in words' for name in (
        'hub', 'randwire_zoo/kernels', 'randwire_zoo/studies', 'randwire_zoo/training', 'randwire_zoo/weights',
        'detection/detectron2', 'detection/torchvision')},
    'randwire_zoo/__init__.py': 'test_autoload.py asks what is installed, and not a copy',
    'randwire_zoo/drawing/__init__.py': 'imports alone',
    'detection/datasets.py': 'imports alone',
}
# Tests that start one interpreter after another, for what others show in their own. Running them for every mutant would
# take days; a mutant that they alone would notice counts as a survivor.
LEFT_OUT = (
    'tests/test_hub.py::test_a_silent_hub_ends_a_command_after_its_timeout_and_at_the_first_interrupt',
    'tests/test_hub.py::test_push_then_every_way_of_loading_gives_the_same_bits',
    'tests/test_hub.py::test_a_published_row_builds_the_network_that_was_trained',
    'tests/test_hub.py::test_half_of_the_bytes_ship_beside_a_manifest_and_the_name_alone_stays_the_papers',
    'tests/test_hub.py::test_without_a_network_the_error_says_what_was_wanted_and_how_long_it_was_tried',
    'tests/test_hub.py::test_altered_bytes_are_refused_by_every_way_of_loading_and_a_bad_file_is_set_aside_and_fetched_'
    'once_more',
    'tests/test_study_survival.py::test_workers_and_studies_that_are_killed_cost_nothing',
    'tests/test_manifest.py::test_an_overlay_with_wrong_rows_leaves_every_name_and_command',
    'tests/test_manifest.py::test_the_overlay_makes_timms_configuration_and_comes_first',
)


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the function it is in, the changed lines before and after, and the whole file after."""

    path: str
    function: str
    lines: range
    body: range
    was: str
    becomes: str
    code: str
    key: str

    def at_import(self, base: Baseline) -> bool:
        """Whether the changed lines are run when the file is imported."""
        return self.lines.start < self.body.start or any('' in base.reached.get(line, ()) for line in self.lines)


def mutants_of(path: str, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a file, in the order of their lines."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.file_mutation import NEVER_MUTATE_FUNCTION_CALLS, deep_replace
    from mutmut.mutation.mutators import mutation_operators

    source = (root / path).read_text(encoding='utf-8')
    wrapper = MetadataWrapper(cst.parse_module(source))
    found: list[tuple[cst.CSTNode, cst.CSTNode, int, str, range, range]] = []

    def says_nothing(node: cst.CSTNode, other: cst.CSTNode) -> bool:
        if not (isinstance(node, cst.Call) and isinstance(other, cst.Call)):
            return False
        old, new = ([(arg.keyword and arg.keyword.value, getattr(arg.value, 'value', '')) for arg in call.args]
                    for call in (node, other))
        return any(keyword in ALONE and (keyword, value) not in new for keyword, value in old) or any(
            (was[1], becomes[1]) == ('False', 'None') for was, becomes in zip(old, new, strict=False))

    statements = set(map(id, wrapper.module.body))

    class Visitor(cst.CSTVisitor):
        METADATA_DEPENDENCIES = (PositionProvider,)

        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []
            self.bodies: list[range] = []
            self.statement = -1

        def span(self, node: cst.CSTNode) -> range:
            place = self.get_metadata(PositionProvider, node)
            return range(place.start.line, place.end.line + 1)

        def on_visit(self, node: cst.CSTNode) -> bool:
            self.statement += id(node) in statements
            if isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom, cst.Raise)):
                return False
            if isinstance(node, cst.Arg) and node.keyword and node.keyword.value in ALONE:
                return False
            if isinstance(node, cst.Assign) and getattr(node.targets[0].target, 'value', None) == '__all__':
                return False
            if isinstance(node, cst.Call) and getattr(node.func, 'value', None) in NEVER_MUTATE_FUNCTION_CALLS:
                return False
            if isinstance(node, (cst.ClassDef, cst.FunctionDef)):
                self.names.append(node.name.value)
                if isinstance(node, cst.FunctionDef):
                    self.bodies.append(self.span(node.body))
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    changed = list(operator(node))
                    for other in changed[:1] if isinstance(node, cst.BaseString) else changed:
                        if says_nothing(node, other):
                            continue
                        # Operators such as `in` have no position of their own in every version of libcst.
                        place = self.get_metadata(PositionProvider, node, None)
                        lines = range(place.start.line, place.end.line + 1) if place else range(0)
                        found.append((node, other, self.statement, '.'.join(self.names), lines,
                                      self.bodies[-1] if self.bodies else range(0)))
            return True

        def on_leave(self, node: cst.CSTNode) -> None:
            if isinstance(node, (cst.ClassDef, cst.FunctionDef)):
                self.names.pop()
                if isinstance(node, cst.FunctionDef):
                    self.bodies.pop()

    wrapper.visit(Visitor())
    module = wrapper.module
    texts = [module.code_for_node(statement) for statement in module.body]
    head, *_ = source.partition(texts[0])
    before = source.splitlines()
    mutants: dict[str, Mutant] = {}
    alike: Counter[str] = Counter()
    for node, other, statement, function, lines, body in found:
        # Rendering one statement again is much faster than the file.
        changed = module.code_for_node(deep_replace(module.body[statement], node, other))  # type: ignore[arg-type]
        code = ''.join((head, *texts[:statement], changed, *texts[statement + 1:]))
        try:
            compile(code, path, 'exec')
        except SyntaxError:
            continue
        after = code.splitlines()
        first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
        last = next(i for i, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b)
        was, becomes = (' '.join(line.strip() for line in text[first:len(text) - last]) for text in (before, after))
        around = '\n'.join(before[body.start - 2:body.stop]) if body else ''
        if code not in mutants:
            identity = '\0'.join((path, function, around, was, becomes, '' if body else code))
            alike[identity] += 1  # of two equal lines in one function
            key = hashlib.sha256(f'{identity}\0{alike[identity]}'.encode()).hexdigest()
            mutants[code] = Mutant(path, function, lines, body, was, becomes, code, key)
    return sorted(mutants.values(), key=lambda mutant: mutant.lines.start)


def copy_project() -> None:
    """Copy what git knows or would add to TREE, with all packages inside randwire_zoo as an installation has them."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = git('ls-files', '-z', '--cached', '--others', '--exclude-standard', check=True).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    for name in BESIDE:
        (TREE / 'randwire_zoo' / name).symlink_to(Path('..', name), target_is_directory=True)


def in_a_child(job: Callable[[], int], seconds: float | None, log: str | None) -> int | None:
    """Run a function in a forked process and give the exit status that it returns; None where it takes too long.

    Args:
        job: The function; an error of it is status 1, and death by a signal the signal's number below 0.
        seconds: How long it takes where nothing is wrong, roughly; None sets no limit.
        log: Where in BUILD its output goes; None leaves it where ours goes.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            if log is not None:
                output = os.open(BUILD / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.pop('TORCH_DEVICE_BACKEND_AUTOLOAD', None)
            if seconds is not None:
                limit = int(5 + 3 * seconds)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
                resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
            status = job()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + (60 + min(15 * seconds, 240 + 2 * seconds) if seconds is not None else float('inf'))
    ended = code = 0
    while not ended and time.monotonic() < end:
        time.sleep(0.005)
        ended, code = os.waitpid(child, os.WNOHANG)
    try:
        os.killpg(child, signal.SIGKILL)  # the child, and whatever its tests have left running
    except ProcessLookupError:
        pass
    if not ended:
        os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(code) if ended else -signal.SIGKILL
    return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status


class Watch:
    """A pytest plugin that notes how long each test takes, which start processes, and which lines each one reaches."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.starting: set[str] = set()
        self.shared: set[str] = set()
        self.unshared: set[str] = set()
        self.current = ''
        start = subprocess.Popen.__init__

        def noted(*args: Any, **kwargs: Any) -> None:
            self.starting.update({self.current} - {''})
            start(*args, **kwargs)
        subprocess.Popen.__init__ = noted  # type: ignore[method-assign]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.current = nodeid
        self.coverage.switch_context(nodeid)
        forget_what_was_computed()  # which this test would compute if it ran alone

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if fixturedef.scope == 'function':
            return (yield)
        test, self.current = self.current, f'@{fixturedef.argname}'  # all tests that use it
        self.coverage.switch_context(self.current)
        threads = threading.active_count()
        try:
            return (yield)
        finally:
            (self.shared if threading.active_count() == threads else self.unshared).add(self.current)
            self.current = test
            self.coverage.switch_context(test)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.fixtures = {item.nodeid: {f'@{name}' for name in item.fixturenames}  # type: ignore[attr-defined]
                         for item in session.items}

    def pytest_runtest_logfinish(self) -> None:
        self.current = ''
        self.coverage.switch_context('')

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def forget_what_was_computed() -> None:
    """Empty the caches of the project's functions."""
    for name, module in list(sys.modules.items()):
        if name.startswith('randwire_zoo'):
            for value in vars(module).values():
                if hasattr(value, 'cache_clear'):
                    value.cache_clear()


def file_of(test: str) -> str:
    return test.partition('::')[0]


@dataclass
class Baseline:
    """What the unchanged tests of a file did; `reached` has the tests and @fixtures that ran a line, '' for imports.

    `starting` are those that start processes, `shared` the @fixtures of a whole file or run, `unshared` those that
    no fork takes along, as they have threads.
    """

    reached: dict[int, list[str]]
    seconds: dict[str, float]
    fixtures: dict[str, set[str]]
    starting: set[str]
    shared: set[str]
    unshared: set[str]
    imported: list[str]

    def tests_for(self, mutant: Mutant) -> list[str]:
        """The tests that may notice, file by file and the cheapest first: those that reach the changed lines, and those
        that start processes."""
        reached = {''}
        if not mutant.at_import(self):
            reached = {test for line in mutant.lines for test in self.reached.get(line, ())}
            reached = reached or {test for line in mutant.body for test in self.reached.get(line, ())}
            reached |= self.starting
        chosen = [test for test in self.seconds if not reached.isdisjoint(('', test, *self.fixtures[test]))]
        files: dict[str, float] = {}
        for test in chosen:
            files[file_of(test)] = files.get(file_of(test), 0.0) + self.seconds[test]
        wider = self.shared | self.unshared  # which take longer than most tests that need them
        return sorted(chosen, key=lambda test: (
            files[file_of(test)], len(self.fixtures[test] & wider), self.seconds[test]))


def pytest_main(files: list[str], *plugins: object) -> int:
    # Neither plug-ins of other packages nor pytest's own that collect garbage at the end: they take longer than tests.
    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
    return int(pytest.main([
        '-x', '-q', '-s', '--no-header', '--tb=short', '-W', 'ignore::pytest.PytestConfigWarning',
        f'--basetemp={BUILD / "tmp"}',
        *(f'-pno:{name}' for name in ('cacheprovider', 'unraisableexception', 'threadexception', 'faulthandler')),
        *(f'--deselect={test}' for test in LEFT_OUT), *files], plugins=plugins))


def baseline(paths: list[str], files: list[str]) -> int:
    """Run the tests of some files on these as they are, and leave a Baseline of each in BUILD."""
    from coverage import Coverage

    sys.dont_write_bytecode = False  # of the tests, for the mutants' runs
    tqdm.monitor_interval = 0  # starts no thread
    coverage = Coverage(data_file=None, include=[str(TREE / path) for path in paths], config_file=False)
    watch = Watch(coverage)
    coverage.start()
    status = pytest_main(files, watch)
    coverage.stop()
    data = coverage.get_data()
    imported = [name for name, module in sys.modules.items()
                if not str(getattr(module, '__file__', None) or TREE).startswith(str(TREE))
                and name.partition('.')[0] not in ('randwire_zoo', 'tests', '__main__', '_randwire_zoo_autoload')]
    BASELINE.write_bytes(pickle.dumps({path: Baseline(
        data.contexts_by_lineno(os.path.realpath(TREE / path)), watch.seconds, watch.fixtures, watch.starting,
        watch.shared, watch.unshared, imported) for path in paths}))
    return status


def warm_up(names: list[str]) -> None:
    """Import what the tests import from elsewhere, so that the children need not."""
    for name in names:
        if name not in sys.modules:
            try:
                import_module(name)
            except Exception:  # a module of another platform, or one that another puts into sys.modules itself
                continue
    gc.collect()
    gc.freeze()  # the children's collections need not go through all this


class Mutate:
    """A pytest plugin that runs no test itself, but in a fork for every mutant those tests that may notice it.

    What is changed within a function that importing does not run is changed in the function objects that are there, by
    putting the new code in; other mutants need a process that collects the tests again, which takes much longer.
    """

    def __init__(self, mutants: list[Mutant], base: Baseline, imported: bool) -> None:
        self.mutants = mutants
        self.base = base
        self.imported = imported  # the one mutant is what has been imported

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        if not items.keys() >= set(self.base.tests_for(self.mutants[0])):
            os._exit(1)  # not even the tests' names are the same
        functions = {} if self.imported else functions_of(TREE / self.mutants[0].path)
        if not self.imported:
            self.share(session)
        gc.collect()
        gc.freeze()
        for mutant in tqdm(self.mutants, disable=self.imported or None, leave=False):
            chosen = [items[test] for test in self.base.tests_for(mutant)]
            seconds = sum(self.base.seconds[item.nodeid] for item in chosen)

            def run(mutant: Mutant = mutant, chosen: list[pytest.Item] = chosen) -> int:
                if not self.imported and not put_in(mutant, functions):
                    return 3
                session._setupstate.teardown_exact(chosen[0])
                for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                return 0

            if self.imported:
                os._exit(run())
            with mutated(mutant):
                status = in_a_child(run, seconds, 'mutant.log') if chosen else 0
            if status != 3:
                note(mutant, status)
        os._exit(0)

    def share(self, session: pytest.Session) -> None:
        """Set up for all mutants what tests of one file share, by a test of it, unless that runs the mutated file."""
        changing = self.base.starting.union(*self.base.reached.values())

        def gain(item: pytest.Item) -> tuple[int, float]:
            fixtures = self.base.fixtures[item.nodeid]
            usable = fixtures.isdisjoint(changing | self.base.unshared)
            return len(fixtures & self.base.shared) * usable, -self.base.seconds[item.nodeid]

        best = max(session.items, key=gain)
        if gain(best)[0]:
            following = next((item for item in session.items if item.parent is best.parent and item is not best), None)
            best.config.hook.pytest_runtest_protocol(item=best, nextitem=following)
            forget_what_was_computed()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)  # that is all there is to know; tidying up takes time


def functions_of(path: Path) -> dict[tuple[str, int], list[FunctionType]]:
    """The functions that are defined in a file, by name and first line."""
    found: dict[tuple[str, int], list[FunctionType]] = {}
    gc.collect()
    for function in gc.get_objects():
        if type(function) is FunctionType and Path(function.__code__.co_filename).name == path.name:
            if os.path.realpath(function.__code__.co_filename) == str(path):
                found.setdefault((function.__code__.co_name, function.__code__.co_firstlineno), []).append(function)
    return found


def put_in(mutant: Mutant, functions: dict[tuple[str, int], list[FunctionType]]) -> bool:
    """Give the mutant's code to the function around it; False where that cannot be done."""
    lines = [line for _, line in functions if line < mutant.body.start]
    around = {code for code in codes(compile(mutant.code, '', 'exec')) if code.co_firstlineno in lines}
    inner = {nested for code in around for nested in codes(code)}
    candidates = [code for code in around - inner if (code.co_name, code.co_firstlineno) in functions]
    if not candidates:
        return False
    outer = max(candidates, key=lambda code: code.co_firstlineno)
    # A function within it may be there by itself, too: what a decorator returned when the file was imported.
    for code in (outer, *(inside for inside in codes(outer) if inside.co_firstlineno <= mutant.lines.start)):
        for function in functions.get((code.co_name, code.co_firstlineno), ()):
            if len(code.co_freevars) != len(function.__code__.co_freevars):
                return False
            function.__code__ = code.replace(co_filename=function.__code__.co_filename)
    return True


def codes(code: CodeType) -> list[CodeType]:
    """The code objects within one, at any depth."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return inner + [nested for const in inner for nested in codes(const)]


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """The file in TREE is the mutant."""
    path = TREE / mutant.path
    original = path.read_bytes()
    for cached in (path.parent / '__pycache__').glob(f'{path.stem}.*'):
        cached.unlink()  # its time stamp has a resolution of a second
    path.write_text(mutant.code, encoding='utf-8')
    try:
        yield
    finally:
        path.write_bytes(original)


def note(mutant: Mutant, status: int | None) -> None:
    """Keep a verdict: a failed test, a crash and a file that cannot be imported are all noticed."""
    with VERDICTS.open('a') as file:
        verdict = 'timeout' if status is None else 'killed' if status else 'survived'
        file.write(json.dumps([mutant.key, verdict]) + '\n')


def verdicts(skip: int = 0) -> list[tuple[str, str]]:
    """The verdicts so far, key and word, without the first few."""
    lines = VERDICTS.read_text().splitlines() if VERDICTS.is_file() else []
    return [tuple(json.loads(line)) for line in lines[skip:]]


def try_out(mutants: list[Mutant], base: Baseline) -> None:
    """Run mutants of one file and keep the verdicts."""
    start = len(verdicts())
    within = [mutant for mutant in mutants if not mutant.at_import(base)]
    if within:
        files = sorted(set(map(file_of, base.seconds)))
        in_a_child(lambda: pytest_main(files, Mutate(within, base, imported=False)), None, None)
    done = dict(verdicts(start))
    for mutant in tqdm([mutant for mutant in mutants if mutant.key not in done], disable=None, leave=False):
        chosen = base.tests_for(mutant)
        files, seconds = sorted(set(map(file_of, chosen))), 3 + sum(base.seconds[test] for test in chosen)
        with mutated(mutant):
            note(mutant, in_a_child(lambda mutant=mutant, files=files: pytest_main(  # type: ignore[misc]
                files, Mutate([mutant], base, imported=True)), seconds, 'mutant.log') if chosen else 0)


def read_survivors() -> dict[str, list[dict[str, str]]]:
    import yaml

    return yaml.safe_load(SURVIVORS.read_text(encoding='utf-8')) or {} if SURVIVORS.is_file() else {}


def report(
        path: str, total: int, results: list[tuple[Mutant, str]], named: list[dict[str, str]],
) -> tuple[dict[str, Any], bool]:
    """Compare survivors with the named ones; return the file's numbers, and whether all is as named."""
    unnamed = list(named)
    counts: Counter[str] = Counter(outcome for _, outcome in results)
    news: list[Mutant] = []
    for mutant, outcome in results:
        if outcome == 'survived':
            entry = next((entry for entry in unnamed if (entry['in'], entry['was'], entry['becomes']) == (
                mutant.function, mutant.was, mutant.becomes)), None)
            if entry is None:
                news.append(mutant)
            else:
                unnamed.remove(entry)
                counts['equivalent'] += 'equivalent' in entry
    for mutant in news:
        print(f'\nnew survivor, {path}, line {mutant.lines.start}:\n- ' + '\n  '.join(
            f'{name}: {json.dumps(text, ensure_ascii=False)}' for name, text in (
                ('in', mutant.function), ('was', mutant.was), ('becomes', mutant.becomes), ('equivalent', ''))))
    for entry in unnamed if len(results) == total else ():
        print(f'\nsurvives no more, {path}: in {entry["in"]}: {entry["was"]} -> {entry["becomes"]}')
    killed, counted = counts['killed'] + counts['timeout'], len(results) - counts['equivalent']
    numbers = {'mutants': total, 'run': len(results), 'killed': counts['killed'], 'timeout': counts['timeout'],
               'equivalent': counts['equivalent'], 'survived': counts['survived'] - counts['equivalent'],
               'percent': round(100 * killed / max(counted, 1), 1)}
    print(f'\n{path}: {numbers}', flush=True)
    return numbers, not news and (not unnamed or len(results) < total)


def git(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    """git at work on this checkout, and not on the repository that a hook has in its environment.

    As `randwire_zoo.provenance.git_environment` has it, which must not be imported here: every child imports a mutant.
    """
    ours = {name: value for name, value in os.environ.items()
            if not name.startswith('GIT_') or name.startswith(('GIT_CONFIG_', 'GIT_EXEC_PATH'))}
    return subprocess.run(['git', *arguments], cwd=ROOT, env=ours, check=check, capture_output=True, text=True)


def commit(*paths: str) -> str:
    """The commit that is tested, with a + where these files differ from it."""
    head = git('rev-parse', '--short=12', 'HEAD', check=True)
    changed = git('diff', '--quiet', 'HEAD', '--', *paths)
    return head.stdout.strip() + '+' * changed.returncode


def lasting(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers that can be looked up: of files that are still mutated, and of commits that git still knows.

    A clone without its whole history knows few of them, and keeps all.
    """
    whole = git('rev-parse', '--is-shallow-repository').stdout.strip() == 'false'
    kept = {}
    for path, numbers in summary.items():
        if path not in MODULES:
            print(f'{SUMMARY.name}: {path} is left out, which is not mutated any more')
        elif whole and git('cat-file', '-t', numbers['commit'].rstrip('+')).stdout.strip() != 'commit':
            print(f'{SUMMARY.name}: {path} is left out, as git knows no commit {numbers["commit"]}')
        else:
            kept[path] = numbers
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('modules', nargs='*', help='parts of the names of the files to mutate; all if none is given')
    parser.add_argument('--fresh', action='store_true', help='run mutants again that an earlier run has killed')
    parser.add_argument('--sample', type=int, metavar='N', help='N mutants of each file, drawn by their hashes')
    parser.add_argument('--list', action='store_true', help='print the mutants and run nothing')
    args = parser.parse_args()
    paths = list(dict.fromkeys(path for part in args.modules or [''] for path in MODULES if part in path))
    if args.list:
        for path in paths:
            for mutant in mutants_of(path):
                print(f'{path}:{mutant.lines.start} in {mutant.function}\n-{mutant.was}\n+{mutant.becomes}')
        return 0

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so by the tests'
    BUILD.mkdir(parents=True, exist_ok=True)
    copy_project()
    os.chdir(TREE)
    sys.path[:] = [str(TREE), *(entry for entry in sys.path if entry and Path(entry) != ROOT / 'tests')]
    os.environ.update(PYTHONPATH=str(TREE), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'  # in this process, which must not import the project
    summary = lasting(json.loads(SUMMARY.read_text(encoding='utf-8')) if SUMMARY.is_file() else {})
    as_named = True
    bases: dict[str, Baseline] = {}
    for path in paths:
        every, tests = mutants_of(path, TREE), [f'tests/{name}.py' for name in MODULES[path]]
        mutants = sorted(every, key=lambda mutant: mutant.key)[:args.sample]
        mutants.sort(key=lambda mutant: mutant.lines.start)
        os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
        if path not in bases:
            alike = [other for other in paths if MODULES[other] == MODULES[path]]
            status = in_a_child(
                lambda alike=alike, tests=tests: baseline(alike, tests), 600, 'baseline.log')  # type: ignore[misc]
            if status == pytest.ExitCode.NO_TESTS_COLLECTED:  # as all of detectron2 where that is not installed
                print(f'{path}: not tried, all its tests are skipped on this machine')
                as_named = False
                continue
            if status != 0:
                print((BUILD / 'baseline.log').read_text(encoding='utf-8', errors='replace'))
                print(f'the tests of {path} do not pass as it is')
                return 1
            bases.update(pickle.loads(BASELINE.read_bytes()))
        base = bases[path]
        warm_up(base.imported)
        print(f'{path}: {len(mutants)} of {len(every)} mutants, {len(base.seconds)} tests of '
              f'{sum(base.seconds.values()):.0f} s', flush=True)
        os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
        sys.dont_write_bytecode = True
        known = {} if args.fresh else dict(verdicts())
        try_out([mutant for mutant in mutants if known.get(mutant.key, 'survived') == 'survived'], base)
        known = dict(verdicts())
        numbers, as_expected = report(
            path, len(every), [(mutant, known[mutant.key]) for mutant in mutants],
            read_survivors().get(path, []))
        as_named = as_named and as_expected
        summary[path] = {**numbers, 'tests': MODULES[path], 'commit': commit(path, *tests),
                         'date': datetime.date.today().isoformat(), 'mutmut': version('mutmut'),
                         'torch': version('torch'), 'python': platform.python_version()}
        SUMMARY.parent.mkdir(parents=True, exist_ok=True)
        SUMMARY.write_text(json.dumps(dict(sorted(summary.items())), indent=1) + '\n', encoding='utf-8')
    return 0 if as_named else 1


if __name__ == '__main__':
    sys.exit(main())
