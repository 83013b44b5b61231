"""Which kernels a command runs on: the native ones where they can be had, unless somebody says otherwise.

A stand-in for the compiler copies a library that was built before; another is not there; a third one fails.
"""
from __future__ import annotations

import os
import platform
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from randwire_zoo import cli, use_kernels
from randwire_zoo.kernels import build, native
from randwire_zoo.kernels import library as kernels
from randwire_zoo.kernels.build import KernelError, load_library
from randwire_zoo.training.trainer import read_summary

COMPILER = os.environ.get('CXX', 'c++').split()[0]
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')

NO_COMPILER = "the native kernels need a C++ compiler, and there is no 'nothing-there': install g++ or set CXX"
FAILING = 'false could not build the native kernels: no message'


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that copies what was built before and notes its runs; nothing is kept yet, nothing chosen."""
    built = load_library()._name
    path = tmp_path / 'compiler'
    path.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nsleep 0.2\n'
                    f'while [ "$1" != -o ]; do shift; done\ncp {built} "$2"\n')
    path.chmod(0o755)
    monkeypatch.setenv('CXX', str(path))
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('RANDWIRE_ZOO_KERNELS', raising=False)
    kernels._library.cache_clear()
    kernels._function.cache_clear()
    return path


def header(kernels_: str | None = None, device: str = 'cpu', **more: Any) -> str:
    """What is said, and that it holds inside the block and not after it."""
    before = kernels._in_use
    with kernels.chosen(kernels_, device, **more) as said:
        assert f'kernels {kernels.kernels_in_use()}' in said
    assert kernels._in_use == before
    return said


@pytest.mark.parametrize('capability', ['DEFAULT', 'AVX2', 'AVX512'])
def test_bf16_on_a_processor_without_instructions_for_it_is_said_to_be_slow(
        capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
    slow = '; bfloat16, for which this processor has no instructions: full precision is several times as fast'
    assert header('torch', amp_dtype='bfloat16').endswith(slow) == (capability != 'AVX512')
    assert 'float16, which no kernel here computes in: bfloat16' in header('torch', amp_dtype='float16')
    for device, amp_dtype in (('cpu', None), ('meta', 'float16'), ('meta', 'bfloat16')):
        assert header('torch', device, amp_dtype=amp_dtype).endswith('kernels torch')
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    assert header('torch', amp_dtype='bfloat16').endswith('kernels torch')


def test_native_kernels_are_chosen_where_they_can_be_had_and_the_reason_is_said_where_not(
        compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = f'device cpu, {torch.get_num_threads()} thread'
    assert header().startswith(start) and header().endswith(f'kernels native ({kernels.instruction_set()})')
    assert header('torch').endswith('kernels torch') and header(threads=5).startswith('device cpu, 5 threads, kernels')
    assert header(device='meta').endswith('kernels torch')
    with pytest.raises(ValueError, match=r"^kernels 'native' compute on the CPU, and the device is 'meta'$"):
        header('native', 'meta')
    with pytest.raises(ValueError, match=r"^kernels must be one of 'torch', 'native', got 'fast'$"):
        header('fast')
    for name, reason in (('nothing-there', NO_COMPILER), ('false', FAILING)):
        kernels._library.cache_clear()
        monkeypatch.setenv('CXX', name)
        assert header().endswith(f'kernels torch: {reason}')
        assert header('torch').endswith('kernels torch')
        with pytest.raises(KernelError) as error:
            header('native')
        assert str(error.value) == reason and kernels._in_use is None


def test_where_the_compiler_has_no_openmp_torch_is_chosen_unless_there_is_one_thread(
        compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'alone.cpp').write_text('extern "C" bool has_threads() { return false; }\n'
                                        'extern "C" const char* instruction_set() { return "neon"; }\n')
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *fopenmp*) echo "error: no OpenMP" >&2; exit 1;; esac\n'
                        f'while [ "$1" != -o ]; do shift; done\n'
                        f'{COMPILER} -shared -fPIC -o "$2" {tmp_path}/alone.cpp\n')
    assert header(threads=1) == 'device cpu, 1 thread, kernels native (neon)'
    assert header(threads=8) == ('device cpu, 8 threads, kernels torch: the native kernels were built without OpenMP '
                                 'and have one thread')
    slow = 'device cpu, 8 threads, kernels native (neon, one thread: built without OpenMP)'
    assert header('native', threads=8) == slow  # whoever asks for them gets them
    use_kernels('native')
    assert header(threads=8) == slow


def test_what_is_said_counts_in_order(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag, then what was chosen in Python, then the variable, which stock scripts read."""
    monkeypatch.setenv('RANDWIRE_ZOO_KERNELS', 'torch')
    assert header().endswith('kernels torch') and 'kernels native (' in header('native')
    use_kernels('native')
    assert 'kernels native (' in header() and header('torch').endswith('kernels torch')
    with kernels.chosen('torch', 'cpu'):  # and a command within a command does not choose anew
        assert header().endswith('kernels torch')
    monkeypatch.setattr(kernels, '_in_use', None)
    monkeypatch.setenv('RANDWIRE_ZOO_KERNELS', 'fast')
    with pytest.raises(ValueError, match=r'^RANDWIRE_ZOO_KERNELS: kernels must be one of'):
        header()
    kernels._library.cache_clear()
    monkeypatch.setenv('CXX', 'nothing-there')
    monkeypatch.setenv('RANDWIRE_ZOO_KERNELS', 'native')
    with pytest.raises(KernelError, match='there is no'):  # whoever asks for them gets them or hears why not
        header()


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='read from /proc/cpuinfo')
def test_the_instructions_are_those_of_the_processor() -> None:
    use_kernels('native')
    flags = Path('/proc/cpuinfo').read_text().split()
    names = ('amx_bf16', 'avx512_bf16', 'avx512', 'avx512f', 'avx2', 'avx', 'sse', 'neon')
    found = [name for name in names if {'avx512': 'avx512vl', 'sse': 'sse2', 'neon': 'asimd'}.get(name, name) in flags]
    assert kernels.instruction_set() == found[0]


@pytest.mark.parametrize('locks', [True, False], ids=['locks', 'no locks'])
def test_several_that_build_at_once_do_not_disturb_each_other(
        locks: bool, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With locks, one builds and the others wait for it; without, all build, and one library remains."""
    if not locks:
        monkeypatch.setattr(build, 'fcntl', None)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_library()._name)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = compiler.parent / 'cache' / 'kernels'
    assert found == [str(path) for path in folder.iterdir()] * 3
    runs = (compiler.parent / 'runs').read_text().split()
    assert len(runs) == 1 if locks else 1 <= len(runs) <= 3


def test_training_and_evaluation_say_and_take_the_same_kernels(
        compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split, label, index in np.ndindex(2, 2, 4):
        folder = tmp_path / 'data' / ('train', 'validation')[split] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f'{index}.png')
    served: list[str] = []
    run = native.run
    monkeypatch.setattr(native, 'run', lambda *args: (served.append('stage'), run(*args))[1])

    def command(*words: str) -> str:
        """The first line that a command prints."""
        served.clear()
        assert cli.main(list(words)) == 0
        return capsys.readouterr().out.splitlines()[0]

    def train(name: str, *more: str) -> str:
        return command('train', '--model', 'randwire', '--model-kwargs', 'graph=ws(2,0.5)', 'channels=4', 'num_nodes=4',
                       '--num-classes', '2', '--img-size', '32', '--data-dir', str(tmp_path / 'data'), '-b', '4', '-j',
                       '0', '--epochs', '1', '--warmup-epochs', '0', '--output', str(tmp_path), '--experiment', name,
                       '--device', 'cpu', *more)

    def evaluate(name: str, *more: str) -> str:
        return command('eval', '--checkpoint', str(tmp_path / name / 'last.pth.tar'), *more)

    ours = f'device cpu, {torch.get_num_threads()} thread'
    for said in (train('native'), evaluate('native')):
        assert said.startswith(ours) and said.endswith(f'kernels native ({kernels.instruction_set()})') and served
    for said in (train('torch', '--kernels', 'torch'), evaluate('torch', '--kernels', 'torch'),
                 train('compiled', '--torchcompile', 'eager')):
        assert said.startswith(ours) and said.endswith('kernels torch') and not served
    assert 'kernels native' in evaluate('torch') and served, 'how a network was trained is no matter of evaluation'
    losses = [read_summary(tmp_path / name / 'summary.csv')[0]['eval_loss'] for name in ('native', 'torch')]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    kernels._library.cache_clear()
    monkeypatch.setenv('CXX', 'nothing-there')
    assert train('without') == f'{ours}{"s" * (torch.get_num_threads() > 1)}, kernels torch: {NO_COMPILER}'
    assert cli.main(['eval', '--checkpoint', str(tmp_path / 'without' / 'last.pth.tar'), '--kernels', 'native']) == 2
    assert capsys.readouterr().err == f'randwire-zoo: error: {NO_COMPILER}\n'
