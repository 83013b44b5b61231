"""Fills the figures of the documents in from the files that they come from: `make docs`.

A figure or table stands between two comments, which no reader of the page sees. The first says what it is:

    …costs <!--= damage figure5_small nodes ba(1) 10 -->31<!--/--> points

    <!--= study figure5_small -->
    | series | …
    <!--/-->

The words are the name of a function below and its arguments, as a shell splits them. What is between the comments is
never typed: it comes from the records of the benchmarks (docs/data), the rows of the studies (docs/studies), and the
package's own data. A test renders every document and compares, and looks for measured figures elsewhere in the text.
"""
from __future__ import annotations

import json
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import tables  # noqa: E402
from tables import Record, Table, best_run  # noqa: E402

from randwire_zoo.architectures import ARCHITECTURES  # noqa: E402
from randwire_zoo.files import write_atomically  # noqa: E402
from randwire_zoo.graphs import parse_graph_model  # noqa: E402
from randwire_zoo.studies import analysis  # noqa: E402
from randwire_zoo.studies.page import p_text  # noqa: E402
from randwire_zoo.studies.report import report_table  # noqa: E402
from randwire_zoo.studies.results import read_results  # noqa: E402
from randwire_zoo.studies.search_report import search_table  # noqa: E402
from randwire_zoo.training.quickstart import REQUIRED_TOP1  # noqa: E402

__all__ = ['DOCUMENTS', 'FIGURE', 'PICTURE', 'picture_is_old', 'render']

DOCUMENTS = ('README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')))
PICTURE = ROOT / 'docs' / 'images' / 'scaling.svg'
FIGURE = re.compile(r'<!--= (?P<words>[^\n]*?) -->(?P<text>.*?)<!--/-->', re.DOTALL)
FUNCTIONS: dict[str, Callable[..., str]] = {}
TYPES = {'fp32': 'float32', 'bf16': 'bfloat16'}
# Other implementations, by the option of a benchmark that names a clone: where that is on GitHub.
OTHERS = {'seungwonpark': 'seungwonpark/RandWireNN', 'jiaminren': 'JiaminRen/RandWireNN',
          'scheduler': 'mit-han-lab/inter-operator-scheduler'}


def render(document: str) -> str:
    """The document with all its figures as the files have them now.

    Raises:
        ValueError: naming the comment that asks for something that there is not, or stands where Markdown would not
            read the line behind it.
    """
    def fill(match: re.Match[str]) -> str:
        words, text = match['words'], match['text']
        block = text.startswith('\n')
        if not block and document[:match.start()].endswith('\n'):
            raise ValueError(f'a line begins with the figure {words!r}, and Markdown reads such a line as HTML')
        name, *arguments = shlex.split(words)
        if name not in FUNCTIONS:
            raise ValueError(f'there is no figure {name!r}; those that there are: {", ".join(FUNCTIONS)}')
        try:
            rendered = FUNCTIONS[name](*arguments)
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError, statistics.StatisticsError) as e:
            raise ValueError(f'the figure {words!r} cannot be had: {type(e).__name__}: {e}') from e
        return f'<!--= {words} -->' + (f'\n{rendered}\n' if block else rendered) + '<!--/-->'

    begun, ended = document.count('<!--='), document.count('<!--/-->')
    if not begun == ended == len(FIGURE.findall(document)):
        raise ValueError('a comment that begins a figure has none that ends it')
    return FIGURE.sub(fill, document)


def figure(function: Callable[..., str]) -> Callable[..., str]:
    """Let documents use the function under its name."""
    FUNCTIONS[function.__name__] = function
    return function


# -- Benchmarks: docs/data --------------------------------------------------------------------------------------------

@lru_cache
def _record(name: str) -> Record:
    return json.loads((ROOT / 'docs' / 'data' / f'{name}.json').read_text(encoding='utf-8'))


@lru_cache
def _records(name: str) -> list[Record]:
    return [json.loads(line) for line in (ROOT / 'docs' / 'data' / f'{name}.jsonl').read_text('utf-8').splitlines()]


def _markdown(table: Table) -> str:
    return tables.format_table(table, 'github')


@figure
def records(*names: str) -> str:
    """Where records come from: command, machine, versions, commit and date, the same only once."""
    lines: dict[str, list[str]] = {}
    for name in names:
        lines.setdefault(tables.machine_line(_record(name)), []).append(
            f'[`{name}.json`](data/{name}.json): `{_record(name)["command"]}`')
    return '\n'.join(f'- {line}:\n' + '\n'.join(f'  - {one}' for one in found) for line, found in lines.items())


@figure
def clones() -> str:
    """Other implementations, with every commit of theirs that a record was made with."""
    used: dict[str, set[str]] = {}
    for path in sorted((ROOT / 'docs' / 'data').glob('*.json')):
        for name, commit in _record(path.stem).get('clones', {}).items():
            if name in OTHERS:
                used.setdefault(name, set()).update([commit[:10]] if commit else [])
    return '\n'.join(
        f'- {name.upper()}: [{OTHERS[name]}](https://github.com/{OTHERS[name]})'
        f'{", commit " + " and ".join(sorted(commits)) if commits else ""}' for name, commits in sorted(used.items()))


@figure
def caution(*names: str) -> str:
    """A warning where a record is of a quick run, whose figures say that the benchmark works and little else."""
    few = min(len(run['seconds']) for name in names for run in _record(name)['results']['runs'])
    return '' if few >= 3 else f'**From a quick run with {few} round{"s" if few > 1 else ""}: no figure to go by yet.**'


@figure
def floors(kind: str) -> str:
    return _markdown(tables.floors_table(_record('floors'), TYPES[kind]))


@figure
def peak(kind: str, name: str = 'floors') -> str:
    """G multiply-adds/s."""
    return f'{tables.peak_rate(_record(name)["results"]["dtypes"][TYPES[kind]]) / 1e9:.0f}'


@figure
def copies() -> str:
    """GB/s."""
    return f'{tables.copy_rate(_record("floors")["results"]["dtypes"]["float32"]) / 1e9:.0f}'


@figure
def convolutions(network: str) -> str:
    return _markdown(tables.convolutions_table(_record('floors'), network, list(TYPES.values())))


@figure
def speed(name: str, kind: str) -> str:
    return _markdown(tables.speed_table(_record(name), TYPES[kind]))


@figure
def latency(*names: str) -> str:
    return _markdown(tables.latency_table([_record(name) for name in names]))


@figure
def detector_start(name: str) -> str:
    """What detectors have learnt of a few images."""
    return _markdown(tables.detector_start_table(_record(name)))


@figure
def detected(*names: str) -> str:
    """Detectors from trained and from random weights."""
    return _markdown(tables.detection_table(*map(_record, names)))


@figure
def transferred(*names: str) -> str:
    """Linear probe and fine-tuning on another data set."""
    return _markdown(tables.transfer_table(*map(_record, names)))


@figure
def setting(name: str, key: str) -> str:
    """What a record was measured with: 'batch', 'size' or 'threads'."""
    return str(_record(name)[key] if key == 'threads' else _record(name)['results'][key])


def _runs(name: str, other: str, kind: str, mode: str, others: str) -> tuple[Record, Record]:
    record = _record(name)
    dtype = TYPES.get(kind, '')
    modes = [run['mode'] for run in record['results']['runs'] if run['mode'].startswith(others)]
    return (best_run(record, record['results']['runs'][0]['network'], dtype, [mode] if mode else []),
            best_run(record, other, dtype, modes))


@figure
def faster(name: str, other: str, kind: str = '', mode: str = '', others: str = '') -> str:
    """How many times faster our network (in its best mode and type, or those given) is than another in its best one.

    Args:
        name: A record of speed.py.
        other: The other network.
        kind: 'fp32' or 'bf16'; both if empty.
        mode: Ours, such as 'native'.
        others: What the mode of the other must begin with, such as 'eager'.
    """
    ours, theirs = _runs(name, other, kind, mode, others)
    return f'{tables.speed_ratio(theirs, ours):.2f}'


@figure
def share(name: str, of: str, kind: str, network: str = '', mode: str = '') -> str:
    """Per cent of a limit, 'peak' or 'library', that a network reaches in its best mode or the one given."""
    record = _record(name)
    results = record['results']
    run = best_run(record, network or results['runs'][0]['network'], TYPES[kind], [mode] if mode else [])
    limits = results['limits'][TYPES[kind]]
    work, seconds = limits['networks'][run['floors']], statistics.median(run['seconds'])
    least = (tables.library_seconds(work, results['train']) if of == 'library' else
             (3 if results['train'] else 1) * work['macs'] / tables.peak_rate(limits))
    return f'{least / seconds:.0%}'.replace('%', ' %')


@figure
def memory(kind: str) -> str:
    record = _record(f'memory_{kind}')
    return _markdown(tables.training_memory_table(record) if kind == 'training' else
                     tables.evaluation_memory_table(record))


@figure
def memory_share(network: str, mode: str, beside: str = '') -> str:
    """Of the memory of training the leanest other implementation, or another network."""
    cases = _record('memory_training')['results']['training']
    ours, = [case['mib'] for case in cases if (case['network'], case['implementation'], case['mode']) == (
        network, 'ours', mode)]
    return f'{ours / min(case["mib"] for case in cases if _is_peer(case, network, beside)):.2f}'


def _is_peer(case: Record, network: str, beside: str) -> bool:
    return case['network'] == beside if beside else case['network'] == network and case['implementation'] != 'ours'


@figure
def ordering() -> str:
    return _markdown(tables.ordering_table(_record('ordering')))


@figure
def ordered_less(family: str) -> str:
    """Per cent by which the lowest peaks are below those of the indices' order, for names with this part."""
    found = [1 - network['after'] / network['before'] for network in _record('ordering')['results']['networks']
             if family in network['network']]
    return _between([100 * share for share in found], 0)


@figure
def accuracy() -> str:
    return _markdown(tables.accuracy_table(_record('accuracy')))


@figure
def accuracy_gap() -> str:
    """Mean of the differences seed by seed, with its 95 % interval (Student's t)."""
    found = tables.accuracy_differences(_record('accuracy'))
    interval = stats.ttest_1samp(found, 0).confidence_interval(0.95)
    return (f'{statistics.mean(found):+.2f} points (95 % interval {interval.low:+.2f} to {interval.high:+.2f}, '
            f'{len(found)} seeds)').replace('-', '−')


@figure
def trained(*names: str) -> str:
    """Published weights on smaller and larger images."""
    return _markdown(tables.trained_table([_record(name) for name in names]))


@figure
def trained_top1(name: str, times: str = '1') -> str:
    """At so many times the trained side, per cent."""
    return f'{_at(name, float(times)):.2f}'


@figure
def trained_gain(name: str, times: str) -> str:
    """Points that images so many times as large change."""
    return f'{_at(name, float(times)) - _at(name, 1):+.1f}'.replace('-', '−')


def _at(name: str, times: float) -> float:
    return float(next(line['top1'] for line in _record(name)['results']['sizes'] if line['times'] == times))


@figure
def interoperator() -> str:
    return _markdown(tables.interoperator_table(_record('interoperator')))


@figure
def scaling(axis: str) -> str:
    return _markdown(tables.scaling_table(_record('scaling'), axis))


@figure
def scaling_rates(axis: str) -> str:
    """G multiply-adds/s along an axis, from least to most."""
    return _between([row['macs'] / statistics.median(row['seconds']) / 1e9
                     for row in _record('scaling')['results']['axes'][axis]], 0)


@figure
def compile_times() -> str:
    return _markdown(tables.compile_table(_record('compile_time')))


@figure
def imports() -> str:
    return _markdown(tables.import_table(_record('import_time')))


@figure
def import_ms(part: str) -> str:
    """CPU milliseconds of a part timed alone."""
    return f'{1e3 * statistics.median(_record("import_time")["results"]["alone"][part]):.1f}'


@figure
def networkx_versions() -> str:
    """The versions under which all graphs agree."""
    results = _record('networkx_versions')['results']
    bad = {version: said for version, said in results.items() if not said.endswith(f' agree under networkx {version}')}
    if bad:
        raise ValueError(f'not all agree: {bad}')
    *all_but_one, last = results
    return f'{", ".join(all_but_one)} and {last}'


@figure
def quickstarts() -> str:
    return _markdown(tables.quickstart_table([row for row in _records('digits') if 'seed' in row['results']]))


@figure
def quickstart_limit() -> str:
    """Below which the command fails, per cent."""
    return f'{REQUIRED_TOP1:g}'


@figure
def quickstart_lowest() -> str:
    """The lowest accuracy on record, per cent."""
    return f'{min(row["results"]["top1"] for row in _records("digits") if "seed" in row["results"]):.2f}'


@figure
def quickstart_output() -> str:
    """What the newest quick start on record with the native kernels printed, as code."""
    newest = max((row for row in _records('digits') if row['results'].get('kernels') == 'native'),
                 key=lambda row: row['date'])
    return '\n'.join(f'    {line}' for line in newest['results']['printed'])


@figure
def digits_svm() -> str:
    """The best of the support vector machines, per cent."""
    return f'{max(next(row["results"]["svm"] for row in _records("digits") if "svm" in row["results"]).values()):.2f}'


# -- Studies: docs/studies --------------------------------------------------------------------------------------------

@lru_cache
def _study(name: str) -> tuple[dict[str, Any], list[analysis.Row]]:
    header, rows = read_results(ROOT / 'docs' / 'studies' / f'{name}.jsonl')
    return header['spec'], [row for row in rows if row['status'] == 'done']


def _means(name: str, column: str = '') -> dict[str, float]:
    """Of every series: accuracy, or a column of the rows."""
    return {series: statistics.mean([row[column] if column else analysis.accuracy(row) for row in rows])
            for series, rows in analysis.by_series(_study(name)[1]).items()}


@figure
def study(name: str) -> str:
    """All tables of a study."""
    return report_table(ROOT / 'docs' / 'studies' / f'{name}.jsonl', 'github').split('\n', 1)[1]


@figure
def search(name: str) -> str:
    """All tables of a search."""
    return search_table(ROOT / 'docs' / 'studies' / f'{name}.jsonl', 'github').split('\n', 1)[1]


@figure
def study_runs() -> str:
    """Where the rows of every study come from: they say it, or else docs/data/studies.jsonl."""
    older = {record['study']: record for record in _records('studies')}
    lines = []
    for path in sorted((ROOT / 'docs' / 'studies').glob('*.jsonl')):
        found = [row['provenance'] for row in _study(path.stem)[1] if 'provenance' in row] or [older[path.stem]]
        same = dict.fromkeys(tables.machine_line(record) for record in sorted(found, key=lambda one: one['date']))
        lines.append(f'- `{path.stem}`: {"; ".join(same)}')
    return '\n'.join(lines)


@figure
def gap(name: str, better: str, worse: str, digits: str = '1') -> str:
    """Points between the means of two series."""
    means = _means(name)
    return f'{means[better] - means[worse]:.{digits}f}'


@figure
def times(name: str, column: str, more: str, less: str, digits: str = '1') -> str:
    """How many times as much the first series has of 'macs', 'params' or 'seconds'."""
    means = _means(name, column)
    return f'{means[more] / means[less]:.{digits}f}'


@figure
def paper_gaps(name: str, *series: str) -> str:
    """Points above what the study's paper has."""
    means, paper = _means(name), _study(name)[0]['paper']
    return _between([means[one] - float(paper[one]) for one in series], 0)


@figure
def size_gaps(name: str, series: str) -> str:
    """Points that other sizes lose in evaluation."""
    rows = analysis.by_series(_study(name)[1])[series]
    return _between([statistics.mean([row['top1'] - row['eval_sizes'][size]['top1'] for row in rows])
                     for size in rows[0]['eval_sizes']], 0)


@figure
def top1_after(name: str, series: str, epoch: str) -> str:
    """Top-1 of the only network of a series when so many epochs were done."""
    row, = analysis.by_series(_study(name)[1])[series]
    top1 = {int(epoch): top1 for epoch, _, top1 in row['history']}
    return f'{top1[int(epoch)]:.2f}'


@figure
def final_losses(name: str) -> str:
    """Training losses of the last epoch."""
    return _between([row['history'][-1][1] for row in _study(name)[1]], 2)


@figure
def top1s(name: str) -> str:
    """Top-1 of the worst and of the best network."""
    return _between([analysis.accuracy(row) for row in _study(name)[1]], 2)


@figure
def top1_of_each(name: str, series: str) -> str:
    """Top-1 of a series' networks in the order of the seeds of their graphs."""
    rows = sorted(analysis.by_series(_study(name)[1])[series], key=lambda row: row['graph_seed'])
    return ', '.join(f'{analysis.accuracy(row):.2f}' for row in rows)


@figure
def removal_images(name: str) -> str:
    """Images that a removal is measured on."""
    return str(_study(name)[0]['damage'])


@figure
def image_points(name: str) -> str:
    """Points that one of these images counts."""
    return f'{100 / _study(name)[0]["damage"]:.2f}'


@figure
def damage(name: str, kind: str, series: str, first: str, last: str = '') -> str:
    """Mean loss in points of removals in a series' networks, by degree from `first` to `last`, as the table has it."""
    means = []
    for row in analysis.by_series(_study(name)[1])[series]:
        losses = [loss for degree, found in analysis.losses_by_degree(row, kind).items()
                  if int(first) <= degree <= int(last or degree) for loss in found]
        means += [statistics.mean(losses)] if losses else []
    return f'{statistics.mean(means):.0f}'


def _difference(name: str, one: str, other: str) -> analysis.Difference:
    found, = [difference for difference in analysis.differences(analysis.by_series(_study(name)[1]))
              if {difference.one, difference.other} == {one, other}]
    return found


@figure
def gap_interval(name: str, better: str, worse: str) -> str:
    """The 95 % interval of the points between the means of two series."""
    difference = _difference(name, better, worse)
    ends = (difference.low, difference.high) if difference.one == better else (-difference.high, -difference.low)
    return f'{ends[0]:.1f} to {ends[1]:.1f}'


@figure
def largest_gap(name: str, *series: str) -> str:
    """The pair of these series that is furthest apart, and its p, alone and among all pairs of the study."""
    tested = analysis.differences(analysis.by_series(_study(name)[1]))
    corrected = analysis.holm([difference.p for difference in tested])
    difference, holm = max(((one, p) for one, p in zip(tested, corrected, strict=True)
                            if {one.one, one.other} <= set(series)), key=lambda pair: abs(pair[0].mean))
    better, worse = difference.one, difference.other
    if difference.mean < 0:
        better, worse = worse, better
    return (f'{better} before {worse} by {abs(difference.mean):.2f} points, has a p of {difference.p:.2f} for itself '
            f'and of {holm:.2f} among {len(tested)} tests')


def _variance(name: str, series: str) -> analysis.Variance:
    found = analysis.variance(analysis.by_series(_study(name)[1])[series])
    if found is None:
        raise ValueError(f'no wiring of {series} was trained twice')
    return found


@figure
def training_spread(name: str, series: str) -> str:
    """Standard deviation in points between trainings of one wiring."""
    return f'{_variance(name, series).within:.1f}'


@figure
def largest_ratio(name: str, *series: str) -> str:
    """How many times the trainings' standard deviation that of the wirings may be, at most, with 95 % confidence."""
    return f'{max(_ratio(name, one)[1] for one in series):.1f}'


@figure
def least_ratio(name: str, series: str) -> str:
    """The same, at least."""
    return f'{_ratio(name, series)[0]:.1f}'


def _ratio(name: str, series: str) -> tuple[float, float]:
    ratio = _variance(name, series).ratio
    if ratio is None:
        raise ValueError(f'{series} has one wiring')
    return ratio


@figure
def wirings_p(name: str, series: str) -> str:
    """p of F, if the wirings of a series do not differ."""
    return p_text(_variance(name, series).p)


@figure
def measure_r(name: str, measure: str, *without: str) -> str:
    """Pearson's r of accuracy and a graph measure, over all series but those named."""
    found = analysis.measure_correlation([row for row in _study(name)[1] if row['series'] not in without], measure)
    if found.over_all is None:
        raise ValueError('too few wirings')
    return f'{found.over_all:.2f}'


@figure
def depths(name: str, *series: str) -> str:
    """Nodes on the longest paths of a series' graphs, the mean over the stages of each network."""
    values = [row['measures']['depth'] for row in _study(name)[1] if row['series'] in series]
    return f'{values[0]:.0f}' if len(set(values)) == 1 else _between(values, 0)


@figure
def leads(name: str, operation: str, others: str, without: str = '') -> str:
    """Points by which a node operation is ahead of others (with commas between them), over all random graph models."""
    means = analysis.operation_means(_study(name)[1])
    return _between([value - means[other][graph] for other in others.split(',')
                     for graph, value in means[operation].items() if graph != without], 1)


@figure
def operation_rs(name: str, without: str = '') -> str:
    """Pearson's r of all wirings' accuracies with each two node operations."""
    pairs = analysis.operation_correlations([row for row in _study(name)[1] if row['graph'] != without])
    return _between([pair.wirings.over_all for pair in pairs], 2)


# -- The package's own data -------------------------------------------------------------------------------------------

# What the paper has (arXiv 1904.01569), beside our names: parameters and multiply-adds, top-1 on ImageNet, and where.
PAPER = {
    'randwire_ws_small': ('5.6 ± 0.1 M, 583 ± 6.2 M', '74.7 ± 0.25', 'Table 2'),
    'randwire_ws_c109': ('31.9 ± 0.66 M, 4.0 ± 0.09 B', '79.0 ± 0.17', 'Table 3'),
    'randwire_ws_c154': ('61.5 ± 1.32 M, 7.9 ± 0.18 B', '80.1 ± 0.19', 'Table 3'),
    'randwire_ws_c154 320': ('16.0 ± 0.36 B', '81.6 ± 0.13', 'Table 4'),
    'randwire_er_small': ('', '', 'Figure 3'), 'randwire_ba_small': ('', '', 'Figure 3'),
    'randwire_ws_pico': ('', '', '–')}


@lru_cache
def _package(name: str) -> dict[str, Any]:
    return json.loads((ROOT / 'randwire_zoo' / name).read_text(encoding='utf-8'))


@figure
def models() -> str:
    """All names, with means and standard deviations over their seeds."""
    complexity = _package('complexity.json')
    families: dict[str, list[str]] = {}
    for name in ARCHITECTURES:
        families.setdefault(re.sub(r'_s\d$', '', name), []).append(name)
    rows = []
    for family in PAPER:
        names = families[family.split()[0]]
        architecture = ARCHITECTURES[names[0]]
        size = (family.split()[1:] or [min(complexity[names[0]].keys() - {'graphs_sha256', 'params'}, key=int)])[0]
        macs = [complexity[name][size]['macs'] for name in names]
        unit, digits = ('B', 2) if macs[0] > 1e9 else ('M', 1)
        cost = f'{_spread([value / {"B": 1e9, "M": 1e6}[unit] for value in macs], digits)} {unit}'
        if ' ' in family:
            rows.append([f'the same at {size} px', '', '', '', cost, *PAPER[family], ''])
            continue
        shown = ', '.join(f'`{name}`' for name in names[:1])
        if len(names) > 1:
            joint = ' … ' if names[0].endswith('_s1') else f', `{names[1][len(family):]}` … '
            shown += f'{joint}`{names[-1][len(family):]}`'
        params = _spread([complexity[name]['params'] / 1e6 for name in names], 2)
        cost += f' at {size} px' if size != '224' else ''
        rows.append([shown, f'{parse_graph_model(architecture.graph)}, N = {architecture.num_nodes}',
                     str(architecture.channels), params, cost, *PAPER[family], ', '.join(
                         f'`{row}`' for row in _package('weights.json') if row.partition('.')[0] in names)])
    columns = ['name', 'graphs', 'C', 'params (M)', 'multiply-adds', "the paper's", 'its ImageNet top-1 (%)', 'where',
               'weights here']
    return tables.tabulate(rows, columns, 'github', disable_numparse=True)


@figure
def weights() -> str:
    """What the manifest has, a row each."""
    rows = []
    for name, row in _package('weights.json').items():
        place = 'in the package' if row.get('file') else f'[{row["repo_id"]}](https://huggingface.co/{row["repo_id"]})'
        top1 = row.get('metrics', {}).get('top1')
        card = f'docs/weights/{name}/README.md'
        shown = f'[`{name}`]({card})' if (ROOT / card).is_file() else f'`{name}`'
        rows.append([shown, row.get('description') or '', str(row['num_classes']), str(row['input_size'][-1]),
                     '–' if top1 is None else f'{top1:.2f}', f'{row["size"] / 1e6:.1f}', place])
    return tables.tabulate(rows, ['weights', 'trained on', 'classes', 'pixels', 'top-1 (%)', 'MB', ''], 'github',
                           disable_numparse=True)


@figure
def versions() -> str:
    """What the tests run with: the oldest versions, those of every run, and the newest."""
    files = [dict(re.findall(r'^([\w-]+)==([\w.]+)', (ROOT / name).read_text(encoding='utf-8'), re.MULTILINE))
             for name in ('constraints-oldest.txt', 'constraints.txt', 'constraints-newest.txt')]
    rows = [[name, *(found[name] for found in files)]
            for name in ('torch', 'torchvision', 'timm', 'networkx', 'huggingface-hub')]
    return tables.tabulate(rows, ['', '`make test-oldest`', '`make test`', '`make test-newest`'], 'github',
                           disable_numparse=True)


@figure
def published(name: str, what: str) -> str:
    """Of weights that the manifest has: a metric in per cent, or 'MB'."""
    row = _package('weights.json')[name]
    return f'{row["size"] / 1e6:.2f}' if what == 'MB' else f'{row["metrics"][what]:.2f}'


@figure
def chance_of_any(probability: str, count: str) -> str:
    """Per cent, that at least one of so many independent events happens."""
    return f'{100 * (1 - (1 - float(probability)) ** int(count)):.0f}'


# -- Formats ----------------------------------------------------------------------------------------------------------

def _between(values: Sequence[float], digits: int) -> str:
    least, most = (f'{value:.{digits}f}' for value in (min(values), max(values)))
    return least if least == most else f'{least} to {most}'


def _spread(values: Iterable[float], digits: int) -> str:
    """As the paper has it; without deviation where there is none."""
    found = list(values)
    text = analysis.spread(found, digits)
    return text.split(' ± ')[0] if len(set(found)) == 1 else text


def picture_is_old(picture: Path, record: Record) -> bool:
    """Whether a picture of scaling.py was drawn from another record."""
    return not picture.is_file() or f'{record["commit"]}, {record["date"]}' not in picture.read_text(encoding='utf-8')


def main() -> None:
    if picture_is_old(PICTURE, _record('scaling')):
        from scaling import draw
        draw(_record('scaling'), PICTURE)
        print(f'{PICTURE.relative_to(ROOT)}: drawn')
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding='utf-8')
        after = render(before)
        if after != before:
            write_atomically(path, after)
        print(f'{name}: {"written" if after != before else "as it was"}')


if __name__ == '__main__':
    main()
