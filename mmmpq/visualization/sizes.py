"""What a net takes in bytes as a table: on the terminal, and in the report."""

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.table import Table

from mmmpq.units import human
from mmmpq.visualization.html import html_table

HEADS = dict(
    float='float', theory='theory', packed='packed file, compressed', onnx='ONNX file'
)
Sizes = Mapping[str, Any]  # of mmmpq.export.sizes.sizes


def check_sizes(sizes: Sizes, source: str = 'sizes') -> Sizes:
    """``sizes`` as they are, if they are what :func:`mmmpq.export.sizes.sizes` gives.

    Raises:
        ValueError: Something is missing or no number.
    """
    try:
        kinds = list(sizes['total'])
        rows = [*sizes['layers'], sizes['weights'], sizes['rest'], sizes['total']]
        whole = 'float' in kinds and set(kinds) <= set(HEADS)
        whole &= all(float(row[kind]) >= 0 for row in rows for kind in kinds)
        whole &= all(row['name'] and row['w_bits'] for row in sizes['layers'])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f'{source} must be what tools/export.py writes to sizes.json: layers, '
            'weights, rest and total, with float bytes and those of files'
        )
    return sizes


def size_table(sizes: Sizes, title: str | None = None) -> Table:
    """The sizes as a table for the terminal."""
    heads, rows = _cells(sizes)
    table = Table(title=title)
    table.add_column(heads[0], overflow='ellipsis')
    for head in heads[1:]:
        table.add_column(head, justify='right', overflow='fold')
    for index, row in enumerate(rows):
        if index == len(sizes['layers']):
            table.add_section()
        table.add_row(*row)
    return table


def size_section(sizes: Sizes) -> str:
    """The sizes as a section of the report."""
    heads, rows = _cells(sizes)
    heads = [escape(head) for head in heads]
    rows = [[escape(cell) for cell in row] for row in rows]
    cut = len(sizes['layers'])
    caption = (
        'Bytes, with the factor that they are smaller by than float. Theory: '
        'bits × weights / 8, which is what a budget of weight bytes counts; the packed '
        'file is compressed besides, which no budget knows. With a layer go its scales '
        'and zero points; the rest are BatchNorms, biases, layers that stay float, and '
        'in a file also names, policy and config, or the graph.'
    )
    return (
        '<section id="sizes"><h2>What the files take</h2>'
        f'{html_table(heads, rows[cut:], caption)}<details><summary>Every layer'
        f'</summary>{html_table(heads, rows[:cut])}</details></section>'
    )


def _cells(sizes: Sizes) -> tuple[list[str], list[tuple[str, ...]]]:
    kinds = [kind for kind in HEADS if kind in sizes['total']]
    rows = [(layer['name'], str(layer['w_bits']), layer) for layer in sizes['layers']]
    rows += [('quantized weights', '', sizes['weights']), ('rest', '', sizes['rest'])]
    rows.append(('total', '', sizes['total']))
    heads = ['layer', 'bits', *(HEADS[kind] for kind in kinds)]
    return heads, [
        (name, bits, *(_bytes(row, kind) for kind in kinds)) for name, bits, row in rows
    ]


def _bytes(row: Mapping[str, Any], kind: str) -> str:
    text = human(round(row[kind]), 'B')
    if kind == 'float' or not row[kind]:
        return text
    return f'{text} ({row["float"] / row[kind]:.1f}×)'
