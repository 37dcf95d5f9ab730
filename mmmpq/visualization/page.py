"""The report as one HTML page that needs no other file and no script."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmmpq.costs.left_float import float_note
from mmmpq.policy import Policy
from mmmpq.units import fits, human, statement
from mmmpq.visualization import heat_map
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.html import document, figure, html_table
from mmmpq.visualization.sizes import Sizes, size_section

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
    return document(
        f'{model}: mixed-precision search',
        _facts(policy, history),
        f'{_budgets(meta, history)}{_table(rows)}',
        size_section(sizes) if sizes else '',
        f'{figures}{_layers(policy, history)}',
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
    return figure(name, title, caption, themes, over)


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
