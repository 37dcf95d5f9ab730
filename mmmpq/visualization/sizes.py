"""What a net takes in bytes as a table: on the terminal, and in the report."""

from html import escape

from rich.table import Table

from mmmpq.units import human

_HEADS = {
    'float': 'float',
    'theory': 'theory',
    'packed': 'packed file',
    'onnx': 'ONNX file',
}


def check_sizes(sizes, source='sizes'):
    """``sizes`` as they are, if they are what :func:`mmmpq.export.sizes.sizes` gives.

    Raises:
        ValueError: Something is missing or no number.
    """
    try:
        kinds = list(sizes['total'])
        rows = [*sizes['layers'], sizes['weights'], sizes['rest'], sizes['total']]
        whole = 'float' in kinds and all(
            float(row[kind]) >= 0 and kind in _HEADS for row in rows for kind in kinds
        )
        whole = whole and all(row['name'] and row['w_bits'] for row in sizes['layers'])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f'{source} must be what tools/export.py writes to sizes.json: layers, '
            'weights, rest and total, with float bytes and those of files'
        )
    return sizes


def size_table(sizes, title=None):
    """The sizes as a table for the terminal."""
    heads, rows = _cells(sizes)
    table = Table(title=title)
    for index, head in enumerate(heads):
        table.add_column(
            head,
            justify='right' if index else 'left',
            overflow='fold' if index else 'ellipsis',
        )
    for index, row in enumerate(rows):
        if index == len(sizes['layers']):
            table.add_section()
        table.add_row(*row)
    return table


def size_section(sizes):
    """The sizes as a section of the report."""
    heads, rows = _cells(sizes)
    cut = len(sizes['layers'])
    head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        '<section id="sizes"><h2>What the files take</h2><div class="scroll"><table>'
        '<caption>Bytes, with the factor that they are smaller by than float. Theory: '
        'bits × weights / 8. With a layer go its scales and zero points; the rest are '
        'BatchNorms, biases, layers that stay float, and in a file also names, policy '
        f'and config, or the graph.</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{_html(rows[cut:])}</tbody></table></div><details><summary>Every layer'
        f'</summary><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{_html(rows[:cut])}</tbody></table></div></details></section>'
    )


def _html(rows):
    return ''.join(
        f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for row in rows
    )


def _cells(sizes):
    kinds = [kind for kind in _HEADS if kind in sizes['total']]
    rows = [(layer['name'], str(layer['w_bits']), layer) for layer in sizes['layers']]
    rows += [('quantized weights', '', sizes['weights']), ('rest', '', sizes['rest'])]
    rows.append(('total', '', sizes['total']))
    heads = ['layer', 'bits', *(_HEADS[kind] for kind in kinds)]
    return heads, [
        (name, bits, *(_bytes(row, kind) for kind in kinds)) for name, bits, row in rows
    ]


def _bytes(row, kind):
    text = human(round(row[kind]), 'B')
    if kind == 'float' or not row[kind]:
        return text
    return f'{text} ({row["float"] / row[kind]:.1f}×)'
