"""Tables of what the benchmarks measured, from the records that they write; for the terminal and for the documents.

Nothing is measured here and torch is not needed. A figure over rounds is their median, a ratio the median of the ratios
of each round, and a peak the best round.
"""
from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

__all__ = [
    'Table', 'accuracy_differences', 'accuracy_table', 'best_run', 'compile_table', 'convolutions_table', 'copy_rate',
    'evaluation_memory_table', 'floors_table', 'format_table', 'import_table', 'interoperator_table', 'latency_table',
    'library_seconds', 'machine_line', 'ordering_table', 'peak_rate', 'quickstart_table', 'run_name', 'scaling_table',
    'speed_ratio', 'speed_table', 'trained_table', 'training_memory_table', 'versions_table',
]

Record = dict[str, Any]
BITS = {'float32': 'fp32', 'bfloat16': 'bf16'}
MANIFEST = Path(__file__).resolve().parents[1] / 'randwire_zoo' / 'weights.json'
PASSES = ('forward', 'input_gradient', 'weight_gradient')


class Table(NamedTuple):
    """Cells as text."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def format_table(table: Table, tablefmt: str = 'simple') -> str:
    """As `tabulate` formats it; 'github' for Markdown."""
    return tabulate(table.rows, table.heads, tablefmt=tablefmt, disable_numparse=True,
                    colalign=('left', *('right',) * (len(table.heads) - 1)))


def machine_line(record: Record) -> str:
    """What a record, or a row of a study's, says about where it comes from, in a line."""
    instructions, memory = (record.get(name) for name in ('instructions', 'memory_gib'))
    return ', '.join([
        record['processor'] + (f' ({" ".join(instructions)})' if instructions else ''),
        *([f'{memory:.0f} GiB'] if memory else []), record['device'] or 'no GPU',
        f'{record["threads"]} thread{"s" if record["threads"] > 1 else ""}', f'Python {record["python"]}',
        f'torch {record["torch"]}', f'timm {record["timm"]}',
        *([record['compiler']] if record.get('compiler') else []),
        _commit(record), record['date'][:10]])


def _commit(record: Record) -> str:
    commit = record.get('commit')
    changed = record.get('changed_since_commit') or (commit or '').endswith('+')
    return f'commit {commit[:10]}{" with changes" if changed else ""}' if commit else 'no commit'


def peak_rate(limits: Record) -> float:
    """Multiply-adds per second: the best round of the best unit."""
    return 1e9 * max(max(rounds) for rounds in limits['peak'].values())


def copy_rate(limits: Record) -> float:
    """Bytes per second."""
    return 1e9 * statistics.median(limits['copy'])


def library_seconds(network: Record, train: bool) -> float:
    """Of all convolutions of a network, one by one."""
    return sum(row['count'] * statistics.median(row[kind]) for row in network['convolutions']
               for kind in (PASSES if train else PASSES[:1]) if kind in row)


def floors_table(record: Record, dtype: str) -> Table:
    """Each network's work, and its time at each of the limits."""
    results = record['results']
    limits = results['dtypes'][dtype]
    rows = []
    for name, network in limits['networks'].items():
        peak, copies = network['macs'] / peak_rate(limits), network['bytes'] / copy_rate(limits)
        rows.append([
            f'`{name}`', f'{network["macs"] / 1e9:.1f}', f'{network["bytes"] / 1e6:,.0f}', _ms(peak), _ms(copies),
            f'{results["batch"] / peak:.0f}', _ms(library_seconds(network, False)),
            _ms(library_seconds(network, True))])
    return Table([f'{BITS[dtype]}, batch {results["batch"]}, {results["size"]} px', 'multiply-adds, G', 'least MB',
                  'at the peak, ms', 'at the copy rate, ms', 'images/s at the peak', "library's convolutions, ms",
                  'the same with gradients, ms'], rows)


def convolutions_table(record: Record, name: str, dtypes: Sequence[str]) -> Table:
    """The library's rate for the 1×1 and depthwise convolutions of a network, one type of data beside the other."""
    networks = [record['results']['dtypes'][dtype]['networks'][name]['convolutions'] for dtype in dtypes]
    rows = []
    for same in zip(*networks, strict=True):
        (channels, width, height, _), depthwise = same[0]['weight'], same[0]['groups'] > 1
        if not depthwise and (height > 1 or same[0]['count'] == 1):
            continue
        kind = f'depthwise 3×3, {channels}' if depthwise else f'1×1, {width} → {channels}'
        stride = '' if same[0]['stride'][0] == 1 else f', stride {same[0]["stride"][0]}'
        side = same[0]['input'][-1]
        rows.append([f'{kind} at {side}²{stride}', *(
            ' / '.join(f'{row["macs"] / statistics.median(row[passes]) / 1e9:.0f}' for row in same)
            for passes in PASSES)])
    names = ' / '.join(BITS[dtype] for dtype in dtypes)
    return Table([f'G multiply-adds/s, {names}', 'forward', "input's gradient", "weight's gradient"], rows)


def run_name(run: Record) -> str:
    """The network of a run and its mode."""
    network = run['network'] if run['network'] in ('seungwonpark', 'JiaminRen') else f'`{run["network"]}`'
    return f'{network}, {run["mode"]}'


def _median(run: Record) -> float:
    return statistics.median(run['seconds'])


def best_run(record: Record, network: str, dtype: str = '', modes: Iterable[str] = ()) -> Record:
    """The fastest run of a network, in all types and modes or in those given.

    Raises:
        ValueError: if there is none.
    """
    runs = [run for run in record['results']['runs'] if run['network'] == network and dtype in ('', run['dtype'])
            and (not modes or run['mode'] in modes)]
    if not runs:
        raise ValueError(f'no run of {network} {dtype} {" ".join(modes)}'.rstrip())
    return min(runs, key=_median)


def speed_ratio(slow: Record, fast: Record) -> float:
    """How many times faster the second run is than the first, of the same record: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow['seconds'], fast['seconds'], strict=True))


def speed_table(record: Record, dtype: str) -> Table:
    """All runs in a type, beside the limits and beside the fastest run of every other network."""
    results = record['results']
    limits = results['limits'][dtype]
    runs = [run for run in results['runs'] if run['dtype'] == dtype]
    ours = runs[0]['network']
    others = [best_run(record, name, dtype) for name in dict.fromkeys(run['network'] for run in runs) if name != ours]
    passes = 3 if results['train'] else 1  # the backward pass multiplies twice as much
    rows = []
    for run in runs:
        network, median = limits['networks'][run['floors']], _median(run)
        rows.append([
            run_name(run), _ms(median), f'{results["batch"] / median:.0f}',
            f'{passes * network["macs"] / peak_rate(limits) / median:.0%}',
            f'{library_seconds(network, results["train"]) / median:.0%}',
            *(f'{speed_ratio(other, run):.2f}×' for other in others)])
    kind = 'a training step' if results['train'] else 'evaluation'
    return Table([f'{kind}, {BITS[dtype]}, batch {results["batch"]}, {results["size"]} px', 'ms', 'images/s',
                  'of the peak', "of the library's rate", *(f'against {run_name(other)}' for other in others)], rows)


def latency_table(records: Sequence[Record]) -> Table:
    """The best mode of every network in every record, and how many times faster the first network is."""
    rows = []
    for record in records:
        results = record['results']
        names = list(dict.fromkeys(run['network'] for run in results['runs']))
        ours = best_run(record, names[0])
        for name in names:
            run = best_run(record, name)
            rows.append([f'{results["size"]} px, batch {results["batch"]}', f'{run_name(run)}, {BITS[run["dtype"]]}',
                         _ms(_median(run)), '' if name == names[0] else f'{speed_ratio(run, ours):.2f}×'])
    return Table(['training' if records[0]['results']['train'] else 'evaluation', 'network, its best mode', 'ms',
                  'ours is faster by'], rows)


def training_memory_table(record: Record) -> Table:
    """What two training steps add to a process, beside the leanest other implementation of the network."""
    rows = []
    for case in record['results']['training']:
        peers = [other['mib'] for other in record['results']['training']
                 if other['network'] == case['network'] and other['implementation'] != 'ours']
        name = f'`{case["network"]}`' + ('' if case['implementation'] == 'ours' else f' of {case["implementation"]}')
        rows.append([f'{name}, {case["mode"]}', f'{case["mib"]:,.0f}',
                     f'{case["mib"] / min(peers):.2f}' if peers else '–'])
    results = record['results']
    return Table([f'training, fp32, batch {results["batch"]}, {results["size"]} px', 'peak growth, MiB',
                  'against the leanest peer'], rows)


def evaluation_memory_table(record: Record) -> Table:
    """Peaks of living activations."""
    results = record['results']
    return Table([f'evaluation, fp32, batch {results["batch"]}, {results["size"]} px', 'peak of activations, MiB',
                  'all node outputs, MiB', 'widest cut, MiB'],
                 [[f'`{row["network"]}`', f'{row["peak_mib"]:.1f}', f'{row["nodes_mib"]:.1f}', f'{row["cut_mib"]:.1f}']
                  for row in results['evaluation']])


def interoperator_table(record: Record) -> Table:
    """All ways to run the network, beside the fastest of torch's and beside eager."""
    seconds = record['results']['seconds']
    torchs = [name for name in seconds if name != 'native']
    best = min(torchs, key=lambda name: statistics.median(seconds[name]))
    rows = [[name, _ms(statistics.median(times)), *(
        f'{statistics.median(a / b for a, b in zip(seconds[other], times, strict=True)):.2f}×'
        for other in ('eager', best))] for name, times in seconds.items()]
    results = record['results']
    return Table([f'C = {results["channels"]}, fp32, batch {results["batch"]}, {results["size"]} px',
                  'ms' if results['clock'] == 'wall' else 'ms of CPU', 'against eager', f'against {best}'], rows)


def ordering_table(record: Record) -> Table:
    """Peaks before and after ordering, in elements and in MB of fp32 at batch 1."""
    rows = []
    for network in record['results']['networks']:
        before, after = network['before'], network['after']
        measured = [f'{peak / 1e6:.2f}' for peak in network.get('measured', ())] or ['', '']
        rows.append([f'`{network["network"]}`', f'{before:,}', f'{after:,}', f'{4e-6 * before:.2f}',
                     f'{4e-6 * after:.2f}', f'{1 - after / before:.0%}', *measured])
    return Table([f'batch 1, {record["results"]["size"]} px', 'elements, by index', 'ordered', 'MB in fp32, by index',
                  'ordered', 'less by', 'measured MB, by index', 'ordered'], rows)


def scaling_table(record: Record, axis: str) -> Table:
    """Cost along one axis."""
    rows = []
    for row in record['results']['axes'][axis]:
        median = statistics.median(row['seconds'])
        rows.append([str(row['value']), f'{row["macs"] / 1e9:.1f}', _ms(median), f'{row["macs"] / median / 1e9:.0f}',
                     *([f'{row["peak_mib"]:.1f}', f'{row["cut_mib"]:.1f}'] if 'peak_mib' in row else [])])
    memory = ['peak of activations, MiB', 'widest cut, MiB'] if 'peak_mib' in record['results']['axes'][axis][0] else []
    heads = {'num_nodes': 'N', 'channels': 'C', 'size': 'pixels per side'}
    return Table([heads[axis], 'multiply-adds, G', 'ms', 'G multiply-adds/s', *memory], rows)


def compile_table(record: Record) -> Table:
    """Seconds until the first result, with empty caches."""
    results = record['results']
    return Table([f'first result of `{results["network"]}`', 'seconds'], [
        [name, f'{statistics.median(seconds):.1f}'] for name, seconds in results['seconds'].items()])


def import_table(record: Record) -> Table:
    """CPU time of imports."""
    rows = []
    for name, pairs in record['results']['pairs'].items():
        first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append([name, _ms(first), _ms(second), _ms(statistics.median(late - early for early, late in pairs))])
    rows += [[name, '', '', _ms(statistics.median(alone))] for name, alone in record['results']['alone'].items()]
    return Table(['CPU ms, medians', 'first', 'second', 'difference'], rows)


def quickstart_table(rows: Sequence[Record]) -> Table:
    """Quick starts of one seed each, by kernels and threads."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for row in rows:
        groups.setdefault((row['results']['kernels'], row['threads']), []).append(row)
    lines = []
    for (kernels, threads), runs in sorted(groups.items()):
        top1 = [run['results']['top1'] for run in runs]
        mean = f'{statistics.mean(top1):.2f}' + (f' ± {statistics.stdev(top1):.2f}' if len(top1) > 1 else '')
        runs = sorted(runs, key=lambda run: str(run['date']))
        commits = dict.fromkeys(_commit(run).removeprefix('commit ') for run in runs)
        lines.append([kernels, str(threads), str(len(runs)), mean, f'{min(top1):.2f}', f'{max(top1):.2f}',
                      ', '.join(dict.fromkeys(run['processor'] for run in runs)), ', '.join(commits)])
    return Table(['kernels', 'threads', 'seeds', 'top-1 of 360 held-out digits (%)', 'lowest', 'highest', 'processor',
                  'commits'], lines)


def trained_table(rows: Sequence[Record]) -> Table:
    """Top-1 of published weights by the side of the images, with the side; and before rounding.

    Records that do not name the side of the last were made when it was measured at the run's `img_size`, which is the
    published weights' input size.
    """
    published = {row['sha256']: row for row in json.loads(MANIFEST.read_text(encoding='utf-8')).values()}
    columns = sorted({line['times'] for row in rows for line in row['results']['sizes']})
    lines = []
    for row in rows:
        run = row['results']
        found = {line['times']: f'{line["top1"]:.2f} ({line["size"]} px)' for line in run['sizes']}
        size = run['float32'].get('size') or published[run['sha256']]['input_size'][-1]
        lines.append([f'`{run["weights"]}`', str(run['recipe']['epochs']), f'{run["float32"]["top1"]:.2f} ({size} px)',
                      *(found.get(times, '–') for times in columns)])
    return Table(['weights', 'epochs', 'top-1 before rounding (%)', *(f'{times:g}×' for times in columns)], lines)


def transfer_table(*records: Record) -> Table:
    """Accuracy on another data set by what a network started from."""
    starts = {'weights': 'the weights', 'random': 'random parameters', 'teacher': 'the teacher'}
    lines = []
    for row in (row for record in records for row in record['results']['rows']):
        probe, tuned = row['probe'], [run['top1'] for run in row['fine_tuned']]
        spread = f' ± {statistics.stdev(tuned):.2f} ({len(tuned)} seeds)' if len(tuned) > 1 else ''
        lines.append([f'`{row["network"]}`', starts[row['start']], str(row['img_size']), f'{probe["num_features"]:,}',
                      f'{probe["top1"]:.2f}', f'{probe["mean_per_class"]:.2f}',
                      f'{statistics.mean(tuned):.2f}{spread}' if tuned else '–'])
    return Table(['network', 'from', 'px', 'features', 'linear probe, top-1 (%)', 'mean over classes (%)',
                  'fine-tuned, top-1 (%)'], lines)


def detection_table(*records: Record) -> Table:
    """Box AP by data set and start, over the seeds, and each one's first evaluation with AP50 above 50 and above 80."""
    found: dict[tuple[str, str], list[Any]] = {}
    for row in (row for record in records for row in record['results']['rows']):
        found.setdefault((row['data'], row['start']), []).append(row['history'])
    lines = []
    for (data, start), runs in found.items():
        cells = []
        for metric in ('AP', 'AP50'):
            values = [run[-1][metric] for run in runs]
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.1f}{spread}')
        first = [', '.join(next((str(point['iteration']) for point in run if point['AP50'] > passed), 'never')
                           for run in runs) for passed in (50, 80)]
        lines.append([data, {'weights': 'the weights', 'random': 'random parameters'}[start], str(len(runs)),
                      str(runs[0][-1]['iteration']), *cells, *first])
    return Table(['images', 'from', 'seeds', 'iterations', 'AP', 'AP50', 'AP50 above 50 at', 'above 80 at'], lines)


def detector_start_table(record: Record) -> Table:
    """What detectors have learnt of a few images, by what was changed."""
    lines = []
    for row in record['results']['rows']:
        losses = [f'{row["losses"][name]:.2f}' for name in ('loss_rpn_cls', 'loss_cls', 'loss_box_reg')]
        lines.append([row['case'], f'{row["found"]} of {row["objects"]}', *losses, f'{row["moved"]:.3f}'])
    return Table(['backbone', 'objects found', 'loss: objectness', 'classes', 'boxes', 'backbone moved by'], lines)


def accuracy_differences(record: Record) -> list[float]:
    """Of every seed, the points by which the native kernels' accuracy is above that of torch's."""
    found = {(run['seed'], run['kernels']): run['top1'] for run in record['results']['runs']}
    return [top1 - found[seed, 'torch'] for (seed, kernels), top1 in found.items()
            if kernels == 'native' and (seed, 'torch') in found]


def accuracy_table(record: Record) -> Table:
    """Last accuracies by seed on both kernels."""
    runs = record['results']['runs']
    found = {(run['seed'], run['kernels']): f'{run["top1"]:.2f}' for run in runs}
    seeds = sorted({run['seed'] for run in runs})
    return Table([f'top-1 (%) after {record["results"]["epochs"]} epochs', *(f'seed {seed}' for seed in seeds)], [
        [kernels, *(found.get((seed, kernels), '–') for seed in seeds)] for kernels in ('native', 'torch')])


def versions_table(record: Record) -> Table:
    """What `freeze --check` said under each version of networkx."""
    return Table(['networkx', '`randwire-zoo freeze --check`'], [
        [version, said] for version, said in record['results'].items()])


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f'{ms:,.0f}' if ms >= 100 else f'{ms:.1f}'
