"""Table and plot of what search_quality.py has measured."""

import csv
import io
import json
from itertools import cycle
from pathlib import Path
from statistics import mean, median, stdev

import paired
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mmmpq.fileio import atomic_write
from mmmpq.units import fits, scale
from mmmpq.visualization.theme import LIGHT, draw

FIELDS = (
    *('set', 'method', 'budget', 'seed', 'metric', 'accuracy', 'bops', 'limit'),
    *('bops_before', 'search_seconds', 'finetune_seconds', 'memory_mib', 'start'),
    'settings',
)
TEXTS = ('set', 'method', 'budget', 'metric', 'start')
# What mmmpq baseline is asked for.
BASELINES = {
    'sensitivity': ['sensitivity'],
    'hessian': ['hessian'],
    'fisher': ['fisher', '--batches', 8],
    'fisher_twice': ['fisher', '--batches', 8],
    'greedy': ['greedy'],
    'uniform': ['uniform'],
    'uniform_long': ['uniform'],
    'uniform_twice': ['uniform'],
    'uniform-all': ['uniform-all'],
    'by_hand': ['uniform-all'],
    'random': ['random'],
    'random_best': ['random', '--samples', 64],
}
SEARCHES = (
    *('bpnas_outputs', 'bpnas_composite', 'bpnas_fisher', 'bpnas_sampled'),
    *('edmips', 'dnas', 'bpnas_paper'),
)
METHODS = (*SEARCHES, *BASELINES)
# Of each method: Okabe-Ito's colours and three more, and a marker each.
COLORS = (
    *('#0072b2', '#56b4e9', '#009e73', '#d55e00', '#cc79a7'),
    *('#e69f00', '#7a5c00', '#000000', '#6a3d9a', '#999999'),
)
MARKERS = 'os^DvP*X<'  # one less, so that no pair comes twice
COLUMNS = (
    *('set', 'budget', 'method', 'runs', 'accuracy', 'spread', 'of the budget'),
    *('inside before', 'inside after', 'search s', 'memory MiB'),
)


def summarise(records: list[dict]) -> list[dict]:
    """Mean and spread over the seeds of each set, budget and method, in that order.

    The spread is the standard deviation of a sample; 0 for a single run. ``before`` is
    the share of runs inside the budget before the solver; None for methods that have no
    such choice.
    """
    grouped: dict[tuple, list[dict]] = {}
    for r in records:
        grouped.setdefault((r['set'], r['budget'], r['method']), []).append(r)
    rows = []
    for (name, budget, method), runs in grouped.items():
        scores = [r['accuracy'] for r in runs]
        before = [r for r in runs if r['bops_before'] is not None]
        rows.append(
            dict(
                set=name,
                budget=budget,
                method=method,
                metric=runs[0]['metric'],
                runs=len(runs),
                accuracy=mean(scores),
                spread=stdev(scores) if len(runs) > 1 else 0.0,
                bops=mean(r['bops'] for r in runs),
                bops_spread=stdev(r['bops'] for r in runs) if len(runs) > 1 else 0.0,
                used=mean(r['bops'] / r['limit'] for r in runs),
                before=mean(fits(r['bops_before'], r['limit']) for r in before)
                if before
                else None,
                used_before=mean(r['bops_before'] / r['limit'] for r in before)
                if before
                else None,
                after=mean(fits(r['bops'], r['limit']) for r in runs),
                search_seconds=median(r['search_seconds'] for r in runs),
                memory_mib=max(r['memory_mib'] for r in runs),
            )
        )
    best = {}
    for row in rows:
        key = row['set'], row['budget']
        best[key] = max(best.get(key, 0.0), row['accuracy'])
    for row in rows:
        row['best'] = row['accuracy'] == best[row['set'], row['budget']]
    return sorted(rows, key=lambda r: (r['set'], r['budget'], -r['accuracy']))


def cells(row: dict) -> list[str]:
    """A row of the table as text, in the order of COLUMNS."""
    percent = row['metric'].startswith('accuracy')  # mmpretrain's are in per cent
    digits = 2 if percent else 4
    before = '–'
    if row['before'] is not None:
        before = f'{row["before"]:.0%} ({row["used_before"]:.1%})'
    return [
        row['set'],
        row['budget'],
        row['method'],
        str(row['runs']),
        f'{row["accuracy"]:.{digits}f}',
        f'{row["spread"]:.{digits}f}',
        f'{row["used"]:.1%}',
        before,
        f'{row["after"]:.0%}',
        f'{row["search_seconds"]:.0f}',
        f'{row["memory_mib"]:.0f}',
    ]


def markdown(rows: list[dict]) -> str:
    """The table; the best mean of a set and budget is bold."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |']
    lines.append('| ' + ' | '.join(['---'] * 3 + ['---:'] * (len(COLUMNS) - 3)) + ' |')
    for row in rows:
        texts = cells(row)
        if row['best']:
            texts[4] = f'**{texts[4]}**'
        lines.append('| ' + ' | '.join(texts) + ' |')
    return '\n'.join(lines) + '\n'


def table_csv(records: list[dict]) -> str:
    """A line a run."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    order = ('set', 'budget', 'method', 'seed')
    for each in sorted(records, key=lambda r: [r[key] for key in order]):
        writer.writerow(dict(each, settings=json.dumps(each['settings'])))
    return out.getvalue()


def read_csv(text: str) -> list[dict]:
    """The records of :func:`table_csv`.

    Raises:
        ValueError: It lacks a column.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in FIELDS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f'--keep: runs.csv in --out has no column {", ".join(missing)}; it is not '
            'of this benchmark, or of an older one: name another --out'
        )
    return [
        {k: v if k in TEXTS else json.loads(v or 'null') for k, v in row.items()}
        for row in reader
    ]


def accuracy_figure(rows: list[dict], theme) -> Figure:
    """Accuracy against BOPs, a panel a set, with the spread as bars both ways."""
    sets = list(dict.fromkeys(r['set'] for r in rows))
    fig = Figure(figsize=(5.0 * len(sets), 3.8), layout='constrained')
    axes = fig.subplots(1, len(sets), squeeze=False)[0]
    handles = {}
    for ax, name in zip(axes, sets, strict=True):
        mine = [r for r in rows if r['set'] == name]
        factor, unit = scale(max(r['bops'] for r in mine), 'BOPs')
        for method, color, marker in zip(METHODS, cycle(COLORS), cycle(MARKERS)):
            points = sorted(
                (r for r in mine if r['method'] == method), key=lambda r: r['bops']
            )
            if points:
                handles[method] = ax.errorbar(
                    [r['bops'] / factor for r in points],
                    [r['accuracy'] for r in points],
                    yerr=[r['spread'] for r in points],
                    xerr=[r['bops_spread'] / factor for r in points],
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=1,
                    elinewidth=0.8,
                    capsize=2,
                )
        ax.set_title(name)
        ax.set_xlabel(unit)
        ax.set_ylabel(mine[0]['metric'])
        ax.grid(True)
        ax.set_axisbelow(True)
    place = dict(loc='outside upper center', ncols=3 * len(sets))  # as wide as a panel
    fig.legend(handles.values(), handles.keys(), **place)
    return fig


def write_results(
    records: list[dict],
    out: Path,
    console: Console,
    reference: str = 'bpnas_composite',
) -> list[dict]:
    """Writes ``runs.csv``, ``table.md``, ``paired.md``, ``accuracy.png``; prints the
    table."""
    rows = summarise(records)
    atomic_write(out / 'runs.csv', table_csv(records))
    atomic_write(out / 'table.md', markdown(rows))
    pairs = paired.differences(records, reference)
    atomic_write(out / 'paired.md', paired.markdown(pairs, reference))
    in_bops = [r for r in rows if ':' not in r['budget']]
    if in_bops:
        atomic_write(out / 'accuracy.png', draw(accuracy_figure, LIGHT, in_bops))
    table = Table(*COLUMNS)
    for column in table.columns[3:]:
        column.justify = 'right'
    for i, row in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1]['budget'] != row['budget']
        table.add_row(
            *cells(row), style='bold' if row['best'] else None, end_section=last
        )
    console.print(table)
    console.print(
        f'Wrote {out}/runs.csv, table.md, paired.md, accuracy.png', soft_wrap=True
    )
    return rows
