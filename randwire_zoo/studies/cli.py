"""`randwire-zoo study`: list, show, run, search, report."""
from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from .cost import NO_DATA, measure_cost
from .engines import LocalEngine, create_engine
from .report import report_table, write_html
from .results import Results
from .running import networks_of, run_study
from .search import Search, is_search, load_search, names_search, run_search, search_names
from .search_report import search_table, write_search_html
from .study import Execution, Network, Study, load_study, study_names
from .work import chosen_kernels

__all__ = ['main']

SHOWN_CANDIDATES = 4  # of a search
POSIX = os.name == 'posix'  # process groups, file locks and exit codes of the engines


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo study`; 1 where a network failed."""
    if args.study_command == 'list':
        print(tabulate([(name, load_study(name).title) for name in study_names()], tablefmt='plain'))
        searches = [(name, load_search(name).title) for name in search_names()]
        print(f'\nFor study search:\n{tabulate(searches, tablefmt="plain")}')
        return 0
    if args.study_command == 'show' and names_search(args.study):
        return _show_search(args, load_search(args.study))
    if args.study_command == 'report':
        table, page = (search_table, write_search_html) if is_search(args.folder) else (report_table, write_html)
        print(table(args.folder, 'github' if args.markdown else 'simple'))
        if args.html:
            page(args.folder, args.html)
            print(args.html)
        return 0
    if args.study_command == 'show':
        study = load_study(args.study)
        execution = _execution(args, study)
        networks = study.networks(progress=True)
        print(_describe(study, networks))
        if study.detection:
            print('\nWhat it costs is not measured: detectron2 trains these.')
        else:
            with chosen_kernels(study, execution) as header:
                print(f'\n{header}\n{measure_cost(study, networks, args.data_dir, execution)}')
        return 0
    if not POSIX:
        raise ValueError(f'study {args.study_command} needs a POSIX system, such as Linux or macOS')
    search = load_search(args.search) if args.study_command == 'search' else None
    study = search.example if search else load_study(args.study)
    if args.workers is not None and args.workers < 1:
        raise ValueError(f'--workers must be at least 1, got {args.workers}')
    odd = [option for option in args.engine_options if '=' not in option]
    if odd:
        raise ValueError(f'--engine-options must be KEY=VALUE, got {odd[0]!r}')
    name = args.search if search else args.study
    folder = Path(args.output or Path('output') / ('search' if search else 'study') / Path(name).stem)
    Results(folder, search or study)  # whose results they are is asked before C is tuned
    # A scheduler's way to end a process; the jobs of the study are to end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = dict(option.split('=', 1) for option in args.engine_options)
    engine = create_engine(args.engine, args.workers, folder, options, study.processes)
    progress = not args.no_progress
    execution = _execution(args, search.example if search else study)
    if isinstance(engine, LocalEngine):  # on a cluster every machine says it, in the log of its job
        with chosen_kernels(study, execution, engine.threads) as header:  # which builds them once for all
            print(f'{header}; {engine.places} network{"s" if engine.places > 1 else ""} at a time', flush=True)
    if search:
        results = run_search(search, folder, engine, args.data_dir, progress, execution, args.retry_failed)
        print(search_table(folder))
    else:
        networks = networks_of(study, folder, progress)
        results = run_study(study, networks, folder, engine, args.data_dir, args.retry_failed, progress, execution)
        print(report_table(folder))
    print(results.path)
    return 1 if any(row['status'] != 'done' for row in results.rows.values()) else 0


def _show_search(args: argparse.Namespace, search: Search) -> int:
    execution = _execution(args, search.example)
    study, networks = search.some_candidates(SHOWN_CANDIDATES)
    print(_describe(replace(study, notes=search.notes), networks))
    with chosen_kernels(study, execution) as header:
        cost = measure_cost(study, networks, args.data_dir, execution)
    steps = '\n'.join(cost.steps)
    print(f'\n{header}\n{steps}')
    if cost.hours is None:
        print(NO_DATA)
    else:
        hours = cost.hours * search.least_epochs / (cost.epochs * len(networks))
        print(f'Cost: at least {hours:.1f} hours of one process for {search.least_epochs} epochs, as these random '
              'candidates cost; more where more of a rung go on than its best.')
    return 0


def _execution(args: argparse.Namespace, study: Study) -> Execution:
    given = {name: value for name, value in vars(args).items() if name in ('kernels', 'amp')}
    if study.detection and 'amp' in given:
        raise ValueError(f"--{'amp' if given['amp'] else 'no-amp'} is for studies of classifiers; of detectors the "
                         'override SOLVER.AMP.ENABLED decides')
    return Execution(**given)


def _describe(study: Study, networks: list[Network]) -> str:
    rows = [(network.id, network.kwargs.get('channels', '–'), f'{network.params / 1e6:.3f}' if network.params else '–',
             f'{network.macs / 1e6:.2f}' if network.macs else '–') for network in networks]
    table = tabulate(rows, ('network', 'C', 'params, M', 'multiply-adds, M'), disable_numparse=True,
                     colalign=('left', 'right', 'right', 'right'))
    once = [graph for graph in study.graphs if study.seeds is None and len(study.graph_seeds or []) > 1
            and len({network.graph_seed for network in networks if network.graph == graph}) == 1]
    said = [f'{", ".join(once)}: all graph_seeds give one wiring, which is trained once with each of the '
            'training_seeds.'] if once else []
    return '\n'.join([study.title, *([study.notes] if study.notes else []), '', table, *said])
