"""What runs the networks of a study: processes on this machine, or jobs of a cluster. Both do the same tasks."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from .work import WATCH, run_task

__all__ = ['ENGINES', 'Engine', 'Job', 'LocalEngine', 'SubmititEngine', 'create_engine']

ENGINES = ('local', 'submitit')


class Job(Protocol):
    """A task that is being done."""

    def poll(self) -> str | None:
        """How it ended, in a few words such as `exit code 0`, or None while it goes on."""

    def stop(self) -> None:
        """End it now."""


class Engine(Protocol):
    """Runs tasks in processes of their own.

    Args:
        places: How many tasks may be started at a time.
    """

    places: int

    def start(self, task: Path, place: int) -> Job:
        """Start a task, given the number of a free place."""


class LocalEngine:
    """As many processes as are asked for: by default one per GPU, or on the CPU one per two cores.

    Each has its share of the cores, and its own GPU where there are GPUs.
    """

    def __init__(self, workers: int | None) -> None:
        import torch
        self.gpus = torch.cuda.device_count()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        self.places = workers or (self.gpus or max(cores // 2, 1))
        self.threads = max(cores // self.places, 1)

    def start(self, task: Path, place: int) -> Job:
        """Start a process whose output goes to a log beside the task."""
        environment = {**os.environ, 'OMP_NUM_THREADS': str(self.threads)}
        if self.gpus:
            visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
            own = place % self.gpus
            environment['CUDA_VISIBLE_DEVICES'] = visible[own] if visible != [''] else str(own)
        with open(task.with_suffix('.log'), 'a', encoding='utf-8') as log:
            return _Process(subprocess.Popen(
                [sys.executable, '-m', 'randwire_zoo.studies.work', str(task), WATCH], env=environment,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        return f'exit code {code}' if code >= 0 else f'signal {-code} ({signal.Signals(-code).name})'

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # with the processes that load its images
            self.process.wait()


class SubmititEngine:
    """Jobs of a SLURM cluster, or of submitit's own local executor, through submitit.

    Args:
        workers: How many jobs may be queued at a time.
        folder: Where submitit keeps its logs; all machines have to see it.
        options: Of submitit's executor, such as `partition`, `gpus_per_node`, `timeout_min`; `cluster=local` runs the
            jobs here.

    Raises:
        ModuleNotFoundError: if submitit is missing.
        ValueError: if it does not take an option.
    """

    def __init__(self, workers: int | None, folder: Path, options: dict[str, str]) -> None:
        import submitit
        options = dict(options)
        cluster = options.pop('cluster', None)
        try:
            self.executor = submitit.AutoExecutor(folder=str(folder / 'jobs'), cluster=cluster)
            options = {'timeout_min': '4320', **options}
            self.executor.update_parameters(**{
                name: int(value) if value.isdigit() else value for name, value in options.items()})
        except (RuntimeError, TypeError, AssertionError, NameError) as error:
            raise ValueError(f'submitit: {" ".join(str(error).split())}') from error
        self.places = workers or 64

    def start(self, task: Path, place: int) -> Job:
        """Queue a job."""
        return _SubmititJob(self.executor.submit(_Requeued(), str(task)))


class _Requeued:
    """A task whose job goes back into the queue when its time is over or it has to make room, to go on from there."""

    def __call__(self, task: str) -> str:
        return run_task(task)

    def checkpoint(self, task: str) -> Any:
        """What submitit asks for then."""
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(self, task)


class _SubmititJob:
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> str | None:
        return f'job {self.job.job_id} {self.job.state}' if self.job.done() else None

    def stop(self) -> None:
        self.job.cancel()


def create_engine(name: str, workers: int | None, folder: Path, options: dict[str, str]) -> Engine:
    """The engine of that name.

    Raises:
        ValueError: if there is none, or it takes no such options.
        ModuleNotFoundError: if its package is missing.
    """
    if name not in ENGINES:
        raise ValueError(f'engine must be one of {", ".join(ENGINES)}, got {name!r}')
    if name == 'local':
        if options:
            raise ValueError(f'the local engine takes no options, got {", ".join(options)}')
        return LocalEngine(workers)
    return SubmititEngine(workers, folder, options)
