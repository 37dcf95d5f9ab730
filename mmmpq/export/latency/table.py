"""Times of layers as the table that a latency budget reads."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmmpq.costs.feeds import Feed
from mmmpq.export.latency.bench import INTEGER, Row, Timed
from mmmpq.export.latency.graphs import Work
from mmmpq.fileio import atomic_write
from mmmpq.policy import A_BITS, BITS, FLOAT, Precision
from mmmpq.units import digits

Times = Mapping[Work, Mapping[Precision, Timed]]
Rows = Iterable[tuple[Work, Work, Feed, Row | None]]


def save_table(
    path: str | Path,
    timed: Times,
    inputs: Mapping[Work, int],
    rows: Rows = (),
    runtime: str = 'onnxruntime',
    **conditions: Any,
) -> Path:
    """Writes :func:`entries` and :func:`pairs`, one a line, and the conditions that
    they hold for."""
    text = json.dumps({**machine(runtime), **conditions}, indent=2).removesuffix('\n}')
    for name, lines in (
        ('entries', entries(timed, inputs)),
        ('pairs', pairs(timed, rows)),
    ):
        listed = ',\n'.join(f'    {json.dumps(line)}' for line in lines)
        text += f',\n  "{name}": [\n{listed}\n  ]'
    return atomic_write(path, f'{text}\n}}\n')


def machine(runtime: str = 'onnxruntime') -> dict[str, str]:
    """The runtime and the processor."""
    version = importlib.metadata.version(runtime)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [ln.partition(': ')[2] for ln in lines if ln.startswith('model name')]
    names.append(platform.processor() or platform.machine())
    return {
        'runtime': f'{runtime} {version}, CPU',
        'processor': f'{names[0]}, {os.cpu_count()} cores',
    }


def entries(timed: Times, inputs: Mapping[Work, int]) -> list[dict[str, Any]]:
    """Rows of a latency table, see :class:`mmmpq.costs.Latency`.

    A width that the runtime does not execute takes the time of the next one that it
    does: 1 to 7 bits that of 8, float on either side that of float. ``executed_as``
    names it. Layers that differ in no field of the table (but in padding, dilation,
    the number of inputs at once, or whether they are closed) share their mean, so that
    the sum over the net is right.

    Args:
        timed: What :func:`.latency_bench.time_layer` gave.
        inputs: How many inputs of each one image makes.
    """
    sums: dict[tuple, dict[str, Any]] = {}
    for work, times in timed.items():
        shape = _place(work)
        for precision in _precisions(times):
            low = max(precision) <= 8
            time_ = times[INTEGER if low else FLOAT]
            total = sums.setdefault(
                (*shape, precision), dict(us=0, n=0, executed=set())
            )
            total['us'] += time_.us * inputs[work]
            total['n'] += inputs[work]
            total['executed'].add(INTEGER if low and time_.integer else FLOAT)
    return [
        dict(
            **dict(shape),
            w_bits=precision.w_bits,
            a_bits=precision.a_bits,
            us=float(digits(total['us'] / total['n'], 4)),
            executed_as=' and '.join(map(str, sorted(total['executed']))),
        )
        for (*shape, precision), total in sums.items()
    ]


def pairs(timed: Times, rows: Rows) -> list[dict[str, Any]]:
    """Of two layers of at most 8 bits in a row, what they take beyond their entries.

    That is the share that they save in a row, of their times apart, times their times
    by themselves: these were measured at another moment, of which the machine may have
    made more or less. Pairs that differ in no field of the table share their mean.

    Args:
        timed: What :func:`.latency_bench.time_layer` gave.
        rows: Of two layers and what one hands on to the other, their times as
            :func:`.latency_bench.time_row` gives them; None: they take no less.
    """
    sums: dict[tuple, list[float]] = {}
    for first, second, feed, row in rows:
        key = tuple(_place(first)), tuple(_place(second)), feed.summed
        total = sums.setdefault(key, [0.0, 0.0])
        if row is not None and row.apart > 0:
            alone = timed[first][INTEGER].us + timed[second][INTEGER].us
            total[0] += feed.inputs * alone * (row.in_a_row / row.apart - 1)
        total[1] += feed.inputs
    return [
        dict(
            first=dict(first),
            second=dict(second),
            summed=summed,
            bits=[[1, 8], [1, 8]],
            us=float(digits(us / inputs, 4)),
        )
        for (first, second, summed), (us, inputs) in sums.items()
        if us
    ]


def _place(work: Work) -> list[tuple[str, Any]]:
    names = ('type', 'in_channels', 'out_channels', 'kernel_size', 'stride', 'groups')
    return [(name, getattr(work, name)) for name in (*names, 'input_size')]


def _precisions(times: Mapping[Precision, Timed]) -> Iterable[Precision]:
    if INTEGER not in times:
        return [p for p in times if p == FLOAT]
    return (Precision(w, a) for w in BITS for a in A_BITS)
