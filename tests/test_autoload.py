"""The zero-configuration route: torch's import installs a hook that registers the models after timm's.

Everything happens in fresh interpreters, away from the checkout. Where a test is about Python's import system alone,
tiny packages stand in for timm and randwire_zoo, as importing the real ones takes seconds.
"""
from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import _randwire_zoo_autoload

HOOK = Path(_randwire_zoo_autoload.__file__)
STANDINS = {
    'log.py': 'events = []\n',
    'timm/__init__.py': 'import log\nfrom . import layers, models, data\nlog.events.append("timm")\n',
    'timm/layers.py': 'import log\nlog.events.append("layers")\n',
    'timm/models/__init__.py': 'import log\nlog.events.append("models")\n',
    'timm/data.py': 'import log\nlog.events.append("data")\n',
    'randwire_zoo/__init__.py': 'import timm.models\n',
    'randwire_zoo/models.py': 'import log\nfrom timm import models, layers\nlog.events.append("randwire")\n',
}


def python(tmp_path: Path, code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in a folder of its own; it must succeed."""
    env = {name: value for name, value in os.environ.items()
           if name not in ('TORCH_DEVICE_BACKEND_AUTOLOAD', 'PYTHONWARNINGS', 'PYTHONPATH')}
    script = tmp_path / 'script.py'
    script.write_text(code, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, *options, str(script)], cwd=tmp_path, env={**env, 'OMP_NUM_THREADS': '1', **variables},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write files, by their relative paths, into a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    return folder


def standins(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the hook and the stand-in packages, in an interpreter without site-packages."""
    world = write(tmp_path / 'world', {**STANDINS, HOOK.name: HOOK.read_text(encoding='utf-8')})
    return python(tmp_path, f'import sys\nsys.path.insert(0, {str(world)!r})\n' + code, '-I', '-S')


def test_the_hook_imports_the_standard_library_alone(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'before = set(sys.modules)\n'
        'import _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'names = {name.partition(".")[0] for name in set(sys.modules) - before}\n'
        'print(sorted(names - sys.stdlib_module_names))\n'))
    assert done.stdout == "['_randwire_zoo_autoload']\n"


def test_registration_comes_right_after_timm_models_and_only_once(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'import importlib, pickle, log, _randwire_zoo_autoload\n'
        'length = len(sys.meta_path)\n'
        '_randwire_zoo_autoload.install()\n'
        '_randwire_zoo_autoload.install()\n'
        'assert len(sys.meta_path) == length + 1\n'
        'import timm\n'
        'assert log.events == ["layers", "models", "randwire", "data", "timm"], log.events\n'
        '_randwire_zoo_autoload.install()\n'
        'importlib.reload(timm.models)\n'
        'assert log.events[5:] == ["models"], log.events\n'
        # Nothing of the hook is left in the module.
        'assert type(timm.models.__loader__) is type(timm.data.__loader__)\n'
        'assert timm.models.__spec__.loader is timm.models.__loader__\n'
        'pickle.loads(pickle.dumps(timm.models.__spec__))\n'))
    assert done.stderr == ''


def test_importing_randwire_zoo_first_registers_once(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'import _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'import randwire_zoo.models, timm, log\n'
        'assert log.events.count("randwire") == 1, log.events\n'))
    assert done.stderr == ''


def test_the_hook_works_in_a_zip_file_whose_modules_share_one_loader(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'world.zip', 'w') as archive:
        for name, text in {**STANDINS, 'timm/models.py': STANDINS['timm/models/__init__.py']}.items():
            if name != 'timm/models/__init__.py':
                archive.writestr(name, text)
    done = standins(tmp_path, (
        f'sys.path.insert(0, {str(tmp_path / "world.zip")!r})\n'
        'import _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'import timm, log\n'
        'assert timm.models.__loader__ is timm.layers.__loader__ and "zip" in timm.__file__\n'
        'assert log.events == ["layers", "models", "randwire", "data", "timm"], log.events\n'))
    assert done.stderr == ''


def test_timm_that_was_purged_and_is_imported_again_has_our_models_again(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'import _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'for turn in range(3):\n'
        '    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:\n'
        '        del sys.modules[name]\n'
        '    import timm, log, randwire_zoo.models\n'
        '    assert randwire_zoo.models.models is timm.models\n'
        '    assert log.events == ["layers", "models", "randwire", "data", "timm"], log.events\n'
        '    del log.events[:]\n'))
    assert done.stderr == ''


def test_another_thread_that_looks_for_timm_does_not_hide_it_from_the_hook(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'import threading, _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'inside, done = threading.Event(), threading.Event()\n'
        'class Slow:\n'
        '    def find_spec(self, name, *arguments):\n'
        '        if name == "timm.models" and threading.current_thread() is thread:\n'
        '            inside.set()\n'
        '            done.wait()\n'
        'sys.meta_path.insert(1, Slow())\n'
        f'arguments = "timm.models", [{str(tmp_path / "world/timm")!r}]\n'
        'thread = threading.Thread(target=sys.meta_path[0].find_spec, args=arguments)\n'
        'thread.start()\n'
        'inside.wait()\n'
        'import timm, log\n'
        'done.set()\n'
        'assert log.events.count("randwire") == 1, log.events\n'))
    assert done.stderr == ''


@pytest.mark.parametrize('place', ['0', 'len(sys.meta_path)'])
def test_the_hook_gets_on_with_another_finder_that_asks_all_finders(tmp_path: Path, place: str) -> None:
    done = standins(tmp_path, (
        'import _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        'class Other:\n'
        '    def find_spec(self, *arguments):\n'
        '        for finder in sys.meta_path:\n'
        '            if finder is not self and (spec := finder.find_spec(*arguments)):\n'
        '                return spec\n'
        f'sys.meta_path.insert({place}, Other())\n'
        'import timm, log\n'
        'assert log.events.count("randwire") == 1, log.events\n'))
    assert done.stderr == ''


def test_a_spec_that_is_found_but_never_executed_still_answers_for_its_loader(tmp_path: Path) -> None:
    done = standins(tmp_path, (
        'import copy, pickle, _randwire_zoo_autoload\n'
        '_randwire_zoo_autoload.install()\n'
        f'spec = _randwire_zoo_autoload.sys.meta_path[0].find_spec("timm.models", [{str(tmp_path / "world/timm")!r}])\n'
        'for copied in (spec, copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):\n'
        '    assert "log.events" in copied.loader.get_source("timm.models")\n'
        'assert not hasattr(spec.loader, "no_such_attribute")\n'))
    assert done.stderr == ''


IMPORTED_FIRST = ('weights.description', 'weights.manifest', 'network', 'training.evaluation')
# What comes after `import torch`, which has installed the hook; each in a fork of the one process that has imported it.
AFTER_TORCH = {
    'creates': (
        'import timm\n'
        'model = timm.create_model("randwire_ws_pico", num_classes=3)\n'
        'print(type(model).__name__, model.fc.out_features)\n'),
    'broken': (
        'sys.path.insert(0, "broken")\n'
        'import timm\n'
        'assert torch.ones(2).sum() == 2\n'
        'assert timm.is_model("resnet18") and not timm.list_models("randwire*")\n'
        'import timm.models, timm.data\n'),
    'syntax error': (
        'import warnings\n'
        'warnings.simplefilter("error", RuntimeWarning)\n'
        'sys.path.insert(0, "syntax_error")\n'
        'import timm\n'
        'assert timm.is_model("resnet18")\n'),
    # What the models are made of may be imported before timm, which then registers models that are half imported.
    **{f'{module} first': (
        'import warnings\n'
        'warnings.simplefilter("error", RuntimeWarning)\n'
        f'import randwire_zoo.{module}, timm\n'
        'print(timm.is_model("randwire_ws_pico"))\n') for module in IMPORTED_FIRST},
}


@pytest.fixture(scope='module')
def after_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What each of AFTER_TORCH has written to stdout and stderr."""
    folder = write(tmp_path_factory.mktemp('after_torch'), {
        'broken/randwire_zoo/__init__.py': '', 'broken/randwire_zoo/models.py': 'raise OSError("disk on fire")\n',
        'syntax_error/randwire_zoo/__init__.py': 'def broken(:\n'})
    done = python(folder, (
        'import os, sys, torch\n'
        'assert "timm" not in sys.modules and "randwire_zoo" not in sys.modules\n'
        f'for name, code in {AFTER_TORCH!r}.items():\n'
        '    if (child := os.fork()) == 0:\n'
        '        for stream, kind in ((1, "out"), (2, "err")):\n'
        '            os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT), stream)\n'
        '        exec(code)\n'
        '        sys.exit()\n'
        '    print(name, os.waitpid(child, 0)[1])\n'))
    outputs = {name: ((folder / f'{name}.out').read_text(), (folder / f'{name}.err').read_text())
               for name in AFTER_TORCH}
    assert done.stdout.splitlines() == [f'{name} 0' for name in AFTER_TORCH], outputs
    return outputs


def test_timm_creates_our_models_without_anybody_importing_us(after_torch: dict[str, tuple[str, str]]) -> None:
    out, err = after_torch['creates']
    assert out == 'RandWire 3\n'
    assert 'randwire' not in err


def test_spawned_and_forkserver_workers_know_our_models(tmp_path: Path) -> None:
    done = python(tmp_path, (
        'import torch\n'
        'class Data(torch.utils.data.Dataset):\n'
        '    def __len__(self):\n'
        '        return 1\n'
        '    def __getitem__(self, index):\n'
        '        import timm\n'
        '        return timm.create_model("randwire_ws_pico", num_classes=7).num_classes\n'
        'if __name__ == "__main__":\n'
        '    for method in ("spawn", "forkserver"):\n'
        '        print(next(iter(torch.utils.data.DataLoader(\n'
        '            Data(), num_workers=1, multiprocessing_context=method))).item())\n'
        '    assert "timm" not in torch.sys.modules and "randwire_zoo" not in torch.sys.modules\n'))
    assert done.stdout == '7\n7\n'
    assert 'randwire' not in done.stderr


def test_a_broken_package_leaves_torch_and_timm_usable_with_one_warning(
        after_torch: dict[str, tuple[str, str]]) -> None:
    _, err = after_torch['broken']
    message = 'RuntimeWarning: randwire-zoo could not register with timm.models (OSError: disk on fire)'
    assert err.count('Warning: ') == err.count(message) == 1, err
    assert 'Traceback' not in err and 'TORCH_DEVICE_BACKEND_AUTOLOAD=0' in err


def test_a_syntax_error_of_ours_does_not_break_timm_where_warnings_are_errors(
        after_torch: dict[str, tuple[str, str]]) -> None:
    _, err = after_torch['syntax error']
    assert err.count('could not register with timm.models (SyntaxError: ') == 1, err


@pytest.mark.parametrize('module', IMPORTED_FIRST)
def test_whichever_module_is_imported_first_our_models_are_registered(
        module: str, after_torch: dict[str, tuple[str, str]]) -> None:
    out, err = after_torch[f'{module} first']
    assert out == 'True\n' and 'could not register' not in err


def test_the_switch_turns_the_hook_off_and_import_randwire_zoo_still_registers(tmp_path: Path) -> None:
    python(tmp_path, (
        'import sys, timm\n'
        'assert "_randwire_zoo_autoload" not in sys.modules\n'
        'assert not timm.is_model("randwire_ws_pico")\n'
        'import randwire_zoo\n'
        'assert timm.is_model("randwire_ws_pico")\n'), TORCH_DEVICE_BACKEND_AUTOLOAD='0')


def test_importing_randwire_zoo_alone_imports_no_library_and_before_timm_it_warns_of_nothing(tmp_path: Path) -> None:
    done = python(tmp_path, (
        'import sys, randwire_zoo\n'
        'assert not {"torch", "timm", "networkx", "numpy"} & set(sys.modules)\n'
        'from randwire_zoo import *\n'
        'assert randwire_zoo.Architecture is ARCHITECTURES["randwire_ws_pico"].__class__\n'
        'assert RandWire.__mro__ and set(randwire_zoo.__all__) <= set(dir(randwire_zoo))\n'
        'try:\n'
        '    randwire_zoo.nothing\n'
        'except AttributeError as error:\n'
        '    print(error)\n'
        'import importlib, timm\n'
        'assert timm.is_model("randwire_ws_pico")\n'
        'importlib.reload(timm.models)\n'
        'assert timm.is_model("randwire_ws_pico")\n'), '-W', 'always')
    assert done.stdout == "module 'randwire_zoo' has no attribute 'nothing'\n"
    assert 'randwire' not in done.stderr and 'Overwriting' not in done.stderr, done.stderr
