"""Measured times of layers, and of whole ONNX files, as tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmmpq.policy import FLOAT, Precision
from mmmpq.units import human

INTEGER = Precision(8, 8)


def layer_table(rows: Iterable[tuple[Any, Sequence[str], Mapping]]) -> Table:
    """A line per distinct layer, in float and in 8 bits.

    Args:
        rows: Of each its :class:`mmmpq.export.latency.graphs.Work`, the names of those
            that do it, and its times as ``latency_bench.time_layer`` gives them.
    """
    table = Table('layer', 'type', 'shape', 'input', 'float', '8 bits', '', '8 bits as')
    for column in table.columns[4:7]:
        column.justify = 'right'
    for work, names, times in rows:
        if not times:
            continue
        base, low = times[FLOAT], times.get(INTEGER)
        cells = ['', '', 'stays float']
        if low is not None:
            ratio = f'{base.us / low.us:.2f}x' if low.us else ''
            cells = [human(low.us, 'us'), ratio, 'integers' if low.integer else 'float']
        kernel = '×'.join(map(str, work.kernel_size))
        table.add_row(
            names[0] + (f' + {len(names) - 1}' if len(names) > 1 else ''),
            work.type,
            f'{work.in_channels} → {work.out_channels}, {kernel} / {work.stride[0]}',
            '×'.join(map(str, work.input_size)),
            human(base.us, 'us'),
            *cells,
        )
    return table


def row_table(rows: Iterable[tuple[Sequence[str], Any]]) -> Table:
    """A line per two layers that stand in a row, in 8 bits.

    Args:
        rows: Of each the names, and its times as ``latency_bench.time_row`` gives them.
    """
    table = Table('two layers, 8 bits', 'apart', 'in a row', '')
    for column in table.columns[1:]:
        column.justify = 'right'
    for names, (apart, together) in rows:
        table.add_row(
            names[0] + (f', + {len(names) - 1}' if len(names) > 1 else ''),
            human(apart, 'us'),
            human(together, 'us'),
            f'{apart / together:.2f}x' if together > 0 else '',
        )
    return table


def file_table(sessions: Sequence[Any], times: Sequence[tuple[float, ...]]) -> Table:
    """A line per file: size, time, speed against the first, and what it runs as.

    Args:
        sessions: Of :class:`mmmpq.export.latency.bench.Session`.
        times: (lower quartile, median, upper quartile) of each, in microseconds.
    """
    table = Table('file', 'size', 'median', 'quartiles', '', 'layers run as')
    for column in table.columns[1:5]:
        column.justify = 'right'
    for session, (low, median, high) in zip(sessions, times, strict=True):
        table.add_row(
            session.name,
            human(Path(session.name).stat().st_size, 'B'),
            human(median, 'us'),
            f'{human(low, "us")} … {human(high, "us")}',
            f'{times[0][1] / median:.2f}x',
            ', '.join(f'{n} {kernel}' for kernel, n in kernels(session.ops).items()),
        )
    return table


def kernels(ops: Mapping[str, int]) -> dict[str, int]:
    """The convolutions and matrix products among operators and their numbers."""
    parts = 'Conv', 'Deconv', 'Gemm', 'MatMul', 'FullyConnected'
    return {op: n for op, n in sorted(ops.items()) if any(p in op for p in parts)}
