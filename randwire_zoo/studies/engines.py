"""What runs the networks of a study: processes on this machine, or jobs of a cluster. Both do the same tasks."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from .arguments import ENGINES
from .work import CANNOT_WRITE, CHANGED, WATCH, CannotWrite, Changed, run_task

__all__ = ['Engine', 'Job', 'LocalEngine', 'SubmititEngine', 'create_engine']

GRACE = 10.0  # seconds that a process has to end when it is asked to
TIMEOUTS = 1000  # times that a job goes back into the queue when its time is over; submitit's own limit is 3
#: By which timm and torch tell one of several processes that train together.
ELSEWHERE = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_NTASKS', 'SLURM_PROCID',
             'SLURM_LOCALID')
LARGEST_ARRAY = 1000  # tasks of a job array; SLURM's own default limit is 1,001


class Job(Protocol):
    """A task that is being done."""

    def poll(self) -> str | None:
        """How it ended, in a few words such as `exit code 0`, or None while it goes on.

        `CANNOT_WRITE` is among them if it ended because its files could not be written, and `CHANGED` if because what
        it would be trained by has changed.
        """

    def stop(self) -> None:
        """End it now."""


class Engine(Protocol):
    """Runs tasks in processes of their own."""

    @property
    def places(self) -> int:
        """How many tasks may have been started and not have ended; may change with every start."""

    def start(self, tasks: list[Path], places: list[int]) -> list[Job]:
        """Start tasks, given the number of a free place for each."""


class LocalEngine:
    """As many networks at a time as are asked for: by default one per GPU, or on the CPU one per two cores.

    Each has its share of the cores, of which OMP_NUM_THREADS may leave some to others, and GPUs of its own where there
    are any.

    Args:
        workers: Networks at a time.
        processes: How many processes, and so GPUs or cores, a network takes.
        gpus: How many GPUs there are; those that torch sees if None.

    Raises:
        ValueError: if there are GPUs, but too few for one network.
    """

    def __init__(self, workers: int | None, processes: int = 1, gpus: int | None = None) -> None:
        if gpus is None:
            import torch
            gpus = torch.cuda.device_count()
        if 0 < gpus < processes:
            raise ValueError(f'a network of this study takes {processes} GPUs, and there are {gpus}')
        self.gpus, self.processes = gpus, processes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        idle = os.environ.get('OMP_NUM_THREADS', '')
        if idle.isdecimal() and int(idle) > 0:
            cores = min(cores, int(idle))
        self.places = workers or max(self.gpus // processes if self.gpus else cores // max(processes, 2), 1)
        self.threads = max(cores // (self.places * processes), 1)

    def start(self, tasks: list[Path], places: list[int]) -> list[Job]:
        """Start a process for each, whose output goes to a log beside the task."""
        return [self._start(task, place) for task, place in zip(tasks, places, strict=True)]

    def environment(self, place: int) -> dict[str, str]:
        """The environment of a process: its threads, and its GPUs."""
        changes = {'OMP_NUM_THREADS': str(self.threads)}
        if self.gpus:
            named = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
            visible = named or list(map(str, range(self.gpus)))
            first = place % (self.gpus // self.processes) * self.processes
            changes['CUDA_VISIBLE_DEVICES'] = ','.join(visible[first:first + self.processes])
        # A batch script of several tasks says so to all that it starts, and each network would wait for the others.
        return {**{name: value for name, value in os.environ.items() if name not in ELSEWHERE}, **changes}

    def _start(self, task: Path, place: int) -> Job:
        log = task.with_suffix('.log')
        with open(log, 'a', encoding='utf-8') as output:
            return _Process(subprocess.Popen(
                [sys.executable, '-m', 'randwire_zoo.studies.work', str(task), WATCH], env=self.environment(place),
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True), log)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def poll(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        if word := {os.EX_IOERR: CANNOT_WRITE, os.EX_CONFIG: CHANGED}.get(code):
            said = [line for line in self.log.read_text(encoding='utf-8', errors='replace').splitlines() if line]
            return said[-1] if said and word in said[-1] else word
        return f'exit code {code}' if code >= 0 else f'signal {-code} ({signal.Signals(-code).name})'

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # with the processes that load its images
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class SubmititEngine:
    """Jobs of a SLURM cluster, or of submitit's own local executor, through submitit.

    Args:
        workers: How many jobs may be at work at a time. On SLURM up to `LARGEST_ARRAY` networks are queued at once, as
            an array of jobs of which the cluster runs so many; what is more, or is queued again, is a job of its own
            once fewer than so many are left.
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
        # Without a word submitit would take this machine where it finds no SLURM, and start everything here at once.
        cluster = options.pop('cluster', 'slurm')
        try:
            self.executor = submitit.AutoExecutor(folder=str(folder / 'jobs'), cluster=cluster,
                                                  slurm_max_num_timeout=TIMEOUTS, local_max_num_timeout=TIMEOUTS)
            options = {'timeout_min': '4320', **options}
            self.is_slurm = self.executor.cluster == 'slurm'
            self.workers = workers or 64
            if self.is_slurm:
                options = {'slurm_array_parallelism': str(self.workers), **options}
                asked = options['slurm_array_parallelism']
                if not asked.isdecimal() or int(asked) < 1:
                    raise ValueError(f'slurm_array_parallelism must be an integer of at least 1, got {asked!r}')
                self.workers = int(asked)
            self.executor.update_parameters(**{
                name: int(value) if value.isdigit() else value for name, value in options.items()})
        except (RuntimeError, TypeError, AssertionError, NameError) as error:
            raise ValueError(f'submitit: {" ".join(str(error).split())}') from error
        self.left: list[_SubmititJob] = []

    @property
    def places(self) -> int:
        """On SLURM an array while there is no job, and then as many as may be at work: no array knows of another's."""
        self.left = [job for job in self.left if not job.ended]
        return self.workers if self.left or not self.is_slurm else LARGEST_ARRAY

    def start(self, tasks: list[Path], places: list[int]) -> list[Job]:
        """Queue jobs, on SLURM as one array."""
        jobs = [_SubmititJob(job) for job in self.executor.map_array(_Requeued(), list(map(str, tasks)))]
        self.left += jobs
        return [*jobs]


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
        self.job, self.ended = job, False

    def poll(self) -> str | None:
        if not self.job.done():
            return None
        self.ended = True
        said = str(self.job.exception() or '').strip().splitlines()
        reasons = [line for line in said if line.startswith(tuple(
            f'{kind.__module__}.{kind.__qualname__}: ' for kind in (CannotWrite, Changed)))]
        return reasons[-1].partition(': ')[2] if reasons else f'job {self.job.job_id} {self.job.state}'

    def stop(self) -> None:
        self.ended = True
        self.job.cancel()


def create_engine(
        name: str, workers: int | None, folder: Path, options: dict[str, str], processes: int = 1) -> Engine:
    """The engine of that name; `processes` train one network.

    Raises:
        ValueError: if there is none, or it takes no such options.
        ModuleNotFoundError: if its package is missing.
    """
    if name not in ENGINES:
        raise ValueError(f'engine must be one of {", ".join(ENGINES)}, got {name!r}')
    if name == 'local':
        if options:
            raise ValueError(f'the local engine takes no options, got {", ".join(options)}')
        return LocalEngine(workers, processes)
    for option in ('tasks_per_node', 'slurm_ntasks_per_node', 'nodes', 'slurm_nodes'):
        if options.get(option, '1') != '1':  # several tasks would wait for each other, or for the one that has begun
            raise ValueError(f"a network is one task on one node, which starts the study's processes; got "
                             f'{option}={options[option]}')
    gpus = options.get('gpus_per_node', options.get('slurm_gpus_per_node', ''))
    if gpus.isdigit() and 0 < int(gpus) < processes:  # with none they share the cores
        raise ValueError(f'each network takes {processes} processes with a GPU each, got gpus_per_node={gpus}')
    return SubmititEngine(workers, folder, options)
