"""The report as one HTML page that needs no other file and no script."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmmpq.costs.left_float import float_note
from mmmpq.policy import Policy
from mmmpq.units import fits, human, statement
from mmmpq.visualization import heat_map
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.html import html_table
from mmmpq.visualization.sizes import Sizes, size_section
from mmmpq.visualization.theme import DPI

Row = Mapping[str, Any]  # of mmmpq.visualization.report.check_rows

FIGURES = {
    'bits': (
        'Bits of every layer',
        'Each layer has two bars, in network order from left to right: the bits of '
        'its weights and of its input activations. Layers on one band share one '
        'choice (a group); hatched grey bars were fixed before the search. Tall bars '
        'are the layers for which the search found bits worth their cost.',
    ),
    'cost': (
        'Expected and realised cost',
        '<em>Expected</em> is the cost averaged over the probabilities; '
        '<em>realised</em> is the cost of the one net that would be taken at that '
        'iteration. The diamond, the net in policy.json, must lie on or below the '
        'dashed budget line, outside the tinted area. Dotted, if any: the shrinking '
        'bound that leads the search there.',
    ),
    'probabilities': (
        'Probabilities over training',
        'One panel per group: the height of a colour is the probability of that '
        'candidate, from few bits (dark) to many (bright). A panel that ends in one '
        'colour is decided; one that ends in several was undecided, and the solver '
        'chose (→) what fits the budget.',
    ),
    'expected': (
        'Expected bits over training',
        'One row per group, from the left to the right of the search: the mean of its '
        'candidates’ bits, weighed by their probabilities (dark: few; bright: many). A '
        'row that stops changing is decided; on the right is what was chosen (→). The '
        'pointer on a row shows its full name and layers, and a search in the page '
        'finds them.',
    ),
    'penalties': (
        'Task loss and penalties',
        'The pale line is every record, the strong one its moving average. The task '
        'loss should fall or stay level while a penalty acts; a penalty that grows '
        'without end pushes against its budget in vain. A steep range is drawn on a '
        'logarithmic axis.',
    ),
}

CSS = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1c2128;
  --soft: #59626e; --line: #dfe3e8; --good: #0b6e4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #171b21;
  --ink: #e3e7ec; --soft: #9aa4b0; --line: #2c333c; --good: #4cc38a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
main { max-width: 1140px; margin: auto; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; max-width: 75ch; }
.soft, caption { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin: 1.1rem 0; }
.budget { font-weight: 600; font-variant-numeric: tabular-nums; max-width: none; }
.good { color: var(--good); } .bad { color: var(--bad); }
.budget small { font-weight: 400; color: var(--soft); display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; max-width: 75ch; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .9rem; }
tr.searched td { font-weight: 650; }
td small { color: var(--soft); font-weight: 400; display: block; }
img { display: block; max-width: 100%; height: auto; }
.figure { position: relative; width: fit-content; max-width: 100%;
  margin: .8rem auto 0; }
.tips span { position: absolute; left: 0; width: 100%; overflow: hidden;
  font-size: 8px; line-height: 1; color: transparent; }
.tips span:hover { outline: 1px solid var(--soft); }
summary { cursor: pointer; font-weight: 600; }
"""


def render(
    work_dir: Path,
    policy: Policy,
    history: SearchHistory,
    rows: Sequence[Row],
    images: Mapping[str, Mapping[str, bytes]],
    sizes: Sizes | None = None,
) -> str:
    """The page as text.

    Args:
        work_dir: Named in the heading.
        images: Figure name -> theme name -> PNG bytes.
        sizes: Bytes of the exported files.
    """
    meta = policy.meta
    model = escape(str(meta.get('model', work_dir.resolve().name)))
    many = len(history.groups) > heat_map.GROUPS
    figures = ''.join(
        _figure(name, images[name], history if many else None)
        for name in FIGURES
        if name in images
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{model}: mixed-precision search</title><style>{CSS}</style></head>'
        f'<body><main><header><h1>{model}: mixed-precision search</h1>'
        f'<p class="soft">{_facts(policy, history)}</p></header>'
        f'{_budgets(meta, history)}{_table(rows)}{size_section(sizes) if sizes else ""}'
        f'{figures}{_layers(policy, history)}'
        '</main></body></html>\n'
    )


def _facts(policy: Policy, history: SearchHistory) -> str:
    """One line on what was searched and how far the search is."""
    meta = policy.meta
    searched = len(history.group_of)
    facts = [
        f'{searched} layers searched in {len(history.groups)} groups, '
        f'{len(policy.layers) - searched} fixed'
    ]
    if meta.get('input_shape'):
        facts.append('reference input ' + ' × '.join(map(str, meta['input_shape'])))
    if history.records:
        last = history.records[-1]
        epoch = f', epoch {last["epoch"]}' if last.get('epoch') is not None else ''
        facts.append(f'last record at iteration {last["iter"]}{epoch}')
    else:
        facts.append('the search has only begun: no record yet')
    if note := float_note(meta.get('float_share')):
        facts.append(note)
    facts += [f'{k} {meta[k]}' for k in ('seed', 'mmmpq') if meta.get(k) is not None]
    return ' · '.join(escape(fact) for fact in facts)


def _budgets(meta: Mapping[str, Any], history: SearchHistory) -> str:
    """Whether the policy fits, in one line per budget."""
    lines = []
    for index, budget in enumerate(meta.get('budgets') or ()):
        if any(budget.get(key) is None for key in ('cost', 'limit', 'unit')):
            continue
        cost, limit, unit = budget['cost'], budget['limit'], budget['unit']
        good = fits(cost, limit)
        more = [f'{budget.get("type", unit)} budget']
        if history.records and index < len(history.budgets):
            expected = history.records[-1]['expected'][index]
            more.append(f'expected cost at the last record {human(expected, unit)}')
        span = history.budgets[index] if index < len(history.budgets) else {}
        if span.get('min') is not None and span.get('max') is not None:
            more.append(
                f'the candidates span {human(span["min"], unit)} to '
                f'{human(span["max"], unit)}'
            )
        lines.append(
            f'<p class="budget {"good" if good else "bad"}">{"✓" if good else "✗"} '
            f'{escape(statement(cost, limit, unit))}'
            f'<small>{escape("; ".join(more))}</small></p>'
        )
    if not lines:
        return ''
    heading = 'Budgets' if len(lines) > 1 else 'Budget'
    return f'<section><h2>{heading}</h2>{"".join(lines)}</section>'


def _table(rows: Sequence[Row]) -> str:
    """Float, uniform, searched: accuracy, costs, compression, time if it is known."""
    if not rows:
        return ''
    base = next((row for row in rows if row['name'].startswith('float')), {})
    heads = ['net', 'accuracy', 'BOPs', 'BOPs compression', 'weights']
    heads.append('weight compression')
    timed = any(row.get('seconds') for row in rows)
    cells = []
    for row in rows:
        bops = _cost(row.get('bops'), 'BOPs')
        if row.get('expected_bops') is not None:
            bops += f'<small>expected {human(row["expected_bops"], "BOPs")}</small>'
        cells.append(
            (
                escape(row['name']),
                _accuracy(row, base),
                bops,
                _compression(row, base, 'bops'),
                _cost(row.get('weight_bytes'), 'bytes'),
                _compression(row, base, 'weight_bytes'),
                *([_time(row)] if timed else ()),
            )
        )
    caption = (
        'BOPs: multiply-accumulates × weight bits × activation bits at the '
        'reference input. Weights: their bytes, packed. Compression: float net over '
        'this net.'
    )
    if timed:
        heads.append('time')
        caption += ' Time: of all that made the net from the float one.'
    table = html_table(heads, cells, caption, ('searched',))
    return f'<section><h2>What it costs, what it keeps</h2>{table}</section>'


def _cost(value: float | None, unit: str) -> str:
    return '–' if value is None else human(value, unit)


def _time(row: Row) -> str:
    return f'{row["seconds"]:,.0f} s' if row.get('seconds') else '–'


def _accuracy(row: Row, base: Row) -> str:
    if row.get('metric') is None:
        return '–'
    text = f'{row["metric"]:.4f}'
    if row is not base and base.get('metric') is not None:
        change = row['metric'] - base['metric']
        text += f'<small>{"−" if change < 0 else "+"}{abs(change):.4f}</small>'
    return text


def _compression(row: Row, base: Row, key: str) -> str:
    if not row.get(key) or not base.get(key):
        return '–'
    return f'{base[key] / row[key]:.1f}×'


def _figure(name: str, themes: Mapping[str, bytes], many: SearchHistory | None) -> str:
    """A figure with its caption.

    Args:
        many: The history of so many groups that their probabilities are a heat map.
    """
    rows = many is not None and name == 'probabilities'
    title, caption = FIGURES['expected' if rows else name]
    over = f'<div class="tips">{heat_map.tips(many)}</div>' if rows else ''
    # a PNG's width in pixels is the big-endian number in its bytes 16 to 19
    width = round(int.from_bytes(themes['light'][16:20], 'big') / DPI * 100)
    data = {
        theme: 'data:image/png;base64,' + base64.b64encode(png).decode()
        for theme, png in themes.items()
    }
    dark = ''
    if 'dark' in data:
        query = 'media="(prefers-color-scheme: dark)"'
        dark = f'<source srcset="{data["dark"]}" {query}>'
    return (
        f'<section id="{name}"><h2>{title}</h2><p class="soft">{caption}</p>'
        '<div class="figure"><picture>'
        f'{dark}<img src="{data["light"]}" width="{width}" alt="{title}"></picture>'
        f'{over}</div></section>'
    )


def _layers(policy: Policy, history: SearchHistory) -> str:
    """The same bits as numbers, folded away."""
    group_of = history.group_of
    rows = [
        (escape(name), escape(group_of.get(name, 'fixed')), str(w_bits), str(a_bits))
        for name, (w_bits, a_bits) in policy.layers.items()
    ]
    table = html_table(('layer', 'group', 'weight bits', 'activation bits'), rows)
    return (
        '<section><details><summary>Every layer as a table</summary>'
        f'{table}</details></section>'
    )
