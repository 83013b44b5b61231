"""Every figure in the documents comes from a file: the documents are rendered again from these files and compared."""
from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from randwire_zoo.studies.results import read_results
from randwire_zoo.studies.search import is_search, load_search, search_names
from randwire_zoo.studies.study import load_study

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'docs'), str(ROOT / 'benchmarks')]

import render  # noqa: E402
import tables  # noqa: E402

DATA = ROOT / 'docs' / 'data'
# A number with a unit of something measured. Settings (pixels, epochs, seeds, batches) and counts of data have none.
MEASURED = (
    r'(?<![\w.,−-])\d[\d,.]*(?: (?:±|to|and) \d[\d,.]*)?[  ]?'
    r'(?:%|×(?!\d)|(?:ms|s|min|h|seconds?|minutes?|hours?|times|points?|AP\d*|[KMG]i?B|[MBG]|GFLOP|[GM]? ?multiply-adds'
    r'|errors|cycles|faults|(?:images|steps|iterations)(?=/s))(?:/s)?(?![\w×]))')
DECIMAL = r'(?<![\w.,(/-])\d+\.\d+(?![\w.)])'  # in the pages of figures; the others are full of settings
FIGURES = ('docs/performance.md', 'docs/results.md')
TRANSCRIPT = re.compile(r'^```(?:console|text|pycon)\n.*?^```$', re.MULTILINE | re.DOTALL)  # what some run printed


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding='utf-8')


def records() -> list[tuple[str, dict[str, Any]]]:
    """All records of docs/data, with the file that has them."""
    found = [(path.name, json.loads(path.read_text('utf-8'))) for path in sorted(DATA.glob('*.json'))
             if path.name != 'quoted.json']
    return found + [(path.name, json.loads(line)) for path in sorted(DATA.glob('*.jsonl'))
                    for line in path.read_text('utf-8').splitlines()]


@pytest.mark.parametrize('document', render.DOCUMENTS)
def test_a_document_is_what_its_files_make_of_it(document: str) -> None:
    assert read(document) == render.render(read(document)), f'make docs, then look at the difference in {document}'


@pytest.mark.parametrize('document', render.DOCUMENTS)
def test_nothing_measured_is_typed(document: str) -> None:
    text = TRANSCRIPT.sub('', render.FIGURE.sub('<!--figure-->', read(document)))
    text = ' '.join(text.split())  # lines break anywhere
    quoted = [quote['text'] for quote in json.loads((DATA / 'quoted.json').read_text('utf-8')).get(document, ())]
    allowed = [range(match.start(), match.end()) for quote in quoted for match in re.finditer(re.escape(quote), text)]
    figures = re.finditer(f'{MEASURED}|{DECIMAL}' if document in FIGURES else MEASURED, text)
    typed = [text[max(0, match.start() - 30):match.end() + 20] for match in figures
             if not any(match.start() in span and match.end() - 1 in span for span in allowed)]
    assert not typed, '\n'.join([
        f'{document}: render these (docs/render.py), or say in docs/data/quoted.json whose they are:', *typed])
    assert [quote for quote in quoted if quote not in text] == [], 'quoted.json lists what is not there any more'


def test_measured_figures_are_found() -> None:
    for text in ('took 520 ms a step', '0.8 to 5.6 points', '14.83 ± 0.28 %', '1.6 times', '2.08×', '1,300 ms',
                 '73.04 %', '96 G multiply-adds/s', '419 MB', 'AP 54.3, or 54.3 AP', '165 images/s',
                 '28,000 page faults ago, 3 faults', '3 to 5 s'):
        assert re.search(MEASURED, text), text
    for text in ('ws(4,0.75)', 'C = 109', '224 px', 'seeds 1 … 5', '3×3', '8×8 pixels', 'torch 2.14.1', 'Table 2',
                 'the last 5 rows', '1×1 convolutions', 'batch 8'):
        assert not re.search(MEASURED, text), text


def test_every_record_says_where_it_comes_from() -> None:
    for name, record in records():
        assert record['processor'] and record['instructions'] and 'device' in record and record['threads'] >= 1, name
        assert all(record[package] for package in ('python', 'torch', 'timm')), name
        assert re.fullmatch(r'[0-9a-f]{40}\+?', record['commit']), name
        assert re.fullmatch(r'20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', record['date']), name
        assert record['command'].startswith(('python benchmarks/', 'randwire-zoo ')), name
        assert not re.search(r'"/|\s/(home|root|tmp|work|Users)\b|=/', json.dumps(record)), f'{name}: somebody\'s path'
    for path in (ROOT / 'docs' / 'studies').glob('*.jsonl'):
        rows = read_results(path)[1]
        known = {record['study'] for name, record in records() if name == 'studies.jsonl'}
        assert path.stem in known or all('provenance' in row for row in rows), path


def test_every_file_of_figures_is_in_a_document() -> None:
    documents = ''.join(map(read, render.DOCUMENTS))
    studies = [path.stem for path in (ROOT / 'docs' / 'studies').glob('*.jsonl')]
    assert [name for name in studies
            if f'<!--= {"search" if name in search_names() else "study"} {name} -->' not in documents] == []
    assert {record['study'] for name, record in records() if name == 'studies.jsonl'} <= set(studies)
    words = set(' '.join(match['words'] for match in render.FIGURE.finditer(documents)).split())
    assert [name for name, _ in records() if name.endswith('.json') and name[:-5] not in words] == []
    assert [name for name in render.FUNCTIONS if f'<!--= {name} ' not in documents] == []
    scaling = json.loads((DATA / 'scaling.json').read_text('utf-8'))
    assert not render.picture_is_old(render.PICTURE, scaling), 'make docs'
    for picture in re.findall(r'!\[[^\]]*\]\(([^)]*)\)', documents):
        assert (ROOT / 'docs' / picture.removeprefix('docs/')).is_file(), picture


@pytest.mark.parametrize('path', sorted((ROOT / 'docs' / 'studies').glob('*.jsonl')), ids=lambda path: path.stem)
def test_the_rows_are_of_the_study_as_it_is_shipped(path: Path) -> None:
    header = read_results(path)[0]
    spec = header['spec']
    if is_search(path):  # with candidates that it would draw today; `spec` has what is left out of a study as well
        search = load_search(path.stem)
        assert search.sha256 == header['sha256'] and all(spec[name] == value for name, value in asdict(search).items()
                                                         if name not in ('title', 'notes'))
        return
    ours = asdict(load_study(path.stem))
    odd = {name for name in spec if name not in ('title', 'notes', 'paper') and spec[name] != ours[name]}
    if 'seeds' in odd and set(spec['seeds']) < set(ours['seeds']):  # the study asks for more than was run
        odd.remove('seeds')
    if 'detection' in odd and detection_settings(spec) == detection_settings(ours):  # overrides that the config has now
        odd.remove('detection')
    assert not odd


def detection_settings(spec: dict[str, Any]) -> list[str]:
    """What a study of detectors has detectron2 do, by its networks."""
    config = pytest.importorskip('detectron2.config', reason='detectron2 is not installed')
    found = []
    for model in spec['models']:
        cfg = config.get_cfg()
        cfg.merge_from_file(str(ROOT / 'configs' / spec['detection']['config'].format(model=model)))
        cfg.merge_from_list(spec['detection']['overrides'])
        found.append(cfg.dump())
    return found


def test_a_figure_that_was_touched_is_seen_and_mended() -> None:
    for document in render.DOCUMENTS:
        text = read(document)
        if not render.FIGURE.search(text):
            continue
        first = next(match for match in render.FIGURE.finditer(text) if re.search(r'\d', match['text']))
        start, end = first.span('text')
        changed = re.sub(r'\d', lambda digit: str((int(digit[0]) + 1) % 10), text[start:end])
        touched = text[:start] + changed + text[end:]
        assert touched != text and render.render(touched) == text


def test_a_line_that_stands_in_the_wrong_table_is_seen() -> None:
    """Each of them is somewhere in the document, which was enough for an earlier test."""
    text = read('docs/results.md')
    lines = text.splitlines(keepends=True)
    starts = [lines.index(f'<!--= study {name} -->\n') for name in ('table2_small', 'table3_small')]
    first, second = (next(i for i, line in enumerate(lines) if i > start and line.startswith('| ws(4,0.75) '))
                     for start in starts)
    lines[first], lines[second] = lines[second], lines[first]
    assert ''.join(lines) != text and render.render(''.join(lines)) == text


def test_a_document_that_asks_for_what_is_not_there_is_refused() -> None:
    for document, message in (
            ('a <!--= gaps table2_small -->1<!--/-->', "no figure 'gaps'"),
            ('a <!--= study table9_small -->1<!--/-->', 'study table9_small'),
            ('a <!--= gap table2_small nobody mobilenetv2_100 -->1<!--/-->', 'nobody'),
            ('a <!--= gap table2_small -->1<!--/-->', 'missing'),
            ('a <!--= gap table2_small ws(4,0.75) mobilenetv2_100 -->1', 'none that ends it'),
            ('a\n<!--= gap table2_small ws(4,0.75) mobilenetv2_100 -->1<!--/-->', 'begins with the figure')):
        with pytest.raises(ValueError, match=re.escape(message)):
            render.render(document)


def test_a_figure_in_the_text_is_right_by_hand() -> None:
    """Against figures worked out from the files with nothing of ours."""
    lines = (ROOT / 'docs' / 'studies' / 'figure6_small.jsonl').read_text('utf-8').splitlines()
    found: dict[str, list[float]] = {}
    for row in map(json.loads, lines[1:]):
        found.setdefault(row['series'], []).append(row['top1'])
    top1 = {series: sum(values) / len(values) for series, values in found.items()}
    graphs = ('er(0.2)', 'ba(5)', 'ba(1)', 'ws(4,0.75)', 'ws(4,0)')
    leads = [top1[f'{graph} sep_conv'] - top1[f'{graph} {pool}']
             for graph in graphs for pool in ('max_pool', 'avg_pool')]
    expected = f'{min(leads):.1f} to {max(leads):.1f}'
    words = 'leads figure6_small sep_conv max_pool,avg_pool'
    assert f'by <!--= {words} -->{expected}<!--/--> points' in read('docs/results.md')


def test_the_quick_start_shown_is_the_newest_with_the_native_kernels() -> None:
    runs = [row for name, row in records() if name == 'digits.jsonl' and row['results'].get('kernels') == 'native']
    newest = sorted(runs, key=lambda row: row['date'])[-1]['results']
    printed = ''.join(f'    {line}\n' for line in newest['printed'])
    assert f'<!--= quickstart_output -->\n{printed}<!--/-->' in read('docs/train.md')


def test_the_commits_of_other_implementations_are_those_of_every_record_that_has_them() -> None:
    text = read('docs/performance.md')
    for repository in ('seungwonpark/RandWireNN', 'JiaminRen/RandWireNN', 'mit-han-lab/inter-operator-scheduler'):
        line, = re.findall(rf'^- .*\(https://github\.com/{repository}\).*$', text, re.MULTILINE)
        name = line.split(':')[0].removeprefix('- ').lower()
        commits = {commit[:10] for _, record in records() if (commit := record.get('clones', {}).get(name))}
        assert set(re.findall(r'\b[0-9a-f]{10}\b', line)) == commits


def test_every_study_is_named_where_studies_are_explained() -> None:
    """`…_small` stands for those of the paper's experiments."""
    text = read('docs/studies.md')
    names = [path.stem for path in (ROOT / 'configs' / 'studies').glob('*.yaml')]
    assert [name for name in names if f'`{name}`' not in text and f'`{name.removesuffix("_small")}`' not in text] == []


def test_publishing_lists_the_weights_that_there_are_and_every_config_that_new_ones_concern() -> None:
    text = read('docs/publishing.md')
    weights = json.loads((ROOT / 'randwire_zoo' / 'weights.json').read_text('utf-8'))
    assert [name for name in weights if not re.search(rf'^{re.escape(name)} ', text, re.MULTILINE)] == []
    steps = text[text.index('## For a maintainer'):]
    concerned = [path.name for pattern in ('*.yaml', '*.py') for path in (ROOT / 'configs').glob(pattern)
                 if re.search(r'^[^#\n]*randwire://randwire_ws_c109', path.read_text('utf-8'), re.MULTILINE)]
    assert len(concerned) > 1 and [name for name in concerned if name not in steps] == []


def test_the_private_names_of_others_are_those_that_contributing_lists() -> None:
    text = read('CONTRIBUTING.md')
    listed = set(re.findall(r'\b(_[a-z]\w+)', text[text.index('## Private names'):text.index('## Add a generator')]))
    public = {'_exit', '_fields', '_repr_svg_', '_repr_html_'}  # by their documentation
    used, own = set(), set()
    for folder in ('randwire_zoo', 'detection', 'hub'):
        for path in (ROOT / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text('utf-8'))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg):
                    own.add(node.arg if isinstance(node, ast.arg) else node.name)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found = [part for part in node.module.split('.') if part.startswith('_')]
                    used.update(found, *([alias.name for alias in node.names] for _ in found[:1]))
                elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ('self', 'cls', 'super()'):
                    used.add(node.attr)
    private = {name for name in used - own - public if re.match(r'_[a-z]', name)}
    assert private - listed == set(), 'say in CONTRIBUTING.md what breaks and which test notices'
    assert private >= listed & {'_version', '_hub', '_features', '_model_args', '_pre_nms_top_n'}, 'gone'


def speed_record(**runs: list[float]) -> dict[str, Any]:
    """A record of speed.py: 10 G multiply-adds, a peak of 100 G/s, convolutions of 0.05 s forward and 0.15 s in all."""
    convolution = {'count': 5, 'forward': [0.01, 0.02, 0.01], 'input_gradient': [0.01], 'weight_gradient': [0.01]}
    network = {'macs': 10e9, 'bytes': 1e9, 'convolutions': [convolution]}
    limits = {'peak': {'fma_fp32': [50, 100, 90], 'dot_bf16': [20]}, 'copy': [10, 30, 20],
              'networks': {'ours': network}}
    names = {'eager': 'ours', 'native': 'ours', 'peer': 'seungwonpark'}
    return {'results': {'train': False, 'batch': 4, 'size': 64, 'limits': {'float32': limits}, 'runs': [
        {'network': names[name], 'mode': 'eager' if name == 'peer' else name, 'dtype': 'float32', 'floors': 'ours',
         'first_call': 1.0, 'seconds': seconds} for name, seconds in runs.items()]}}


def test_speed_is_beside_the_peak_and_the_library_and_ratios_are_taken_round_by_round() -> None:
    record = speed_record(eager=[0.4, 0.4, 4.0], native=[0.2, 0.2, 2.0], peer=[0.4, 0.5, 6.0])
    table = tables.speed_table(record, 'float32')
    assert [list(row) for row in table.rows] == [
        # 10 G at 100 G/s are 0.1 s of 0.4; five convolutions at a median of 0.01 s are 0.05 s; 0.4/0.4, 0.5/0.4, 6/4
        ['`ours`, eager', '400', '10', '25%', '12%', '1.25×'],
        ['`ours`, native', '200', '20', '50%', '25%', '2.50×'],
        ['seungwonpark, eager', '500', '8', '20%', '10%', '1.00×']]
    record['results']['train'] = True
    assert [list(row[3:5]) for row in tables.speed_table(record, 'float32').rows][1] == ['150%', '75%']
    best = tables.best_run(record, 'ours')
    assert best['mode'] == 'native' and tables.speed_ratio(tables.best_run(record, 'seungwonpark'), best) == 2.5
    with pytest.raises(ValueError, match='no run of resnet50'):
        tables.best_run(record, 'resnet50')
