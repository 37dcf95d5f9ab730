"""Times of layers as the table that a latency budget reads."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from mmmpq.export.latency.bench import INTEGER, Timed
from mmmpq.export.latency.graphs import Work
from mmmpq.fileio import atomic_write
from mmmpq.policy import A_BITS, BITS, FLOAT, Precision
from mmmpq.units import digits

Times = Mapping[Work, Mapping[Precision, Timed]]


def save_table(
    path: str | Path, timed: Times, inputs: Mapping[Work, int], **conditions: Any
) -> Path:
    """Writes :func:`entries`, one a line, and the conditions that they hold for."""
    head = json.dumps({**machine(), **conditions}, indent=2).removesuffix('\n}')
    rows = ',\n'.join(f'    {json.dumps(row)}' for row in entries(timed, inputs))
    return atomic_write(path, f'{head},\n  "entries": [\n{rows}\n  ]\n}}\n')


def machine() -> dict[str, str]:
    """The runtime and the processor."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [ln.partition(': ')[2] for ln in lines if ln.startswith('model name')]
    names.append(platform.processor() or platform.machine())
    return {
        'runtime': f'onnxruntime {onnxruntime.__version__}, CPU',
        'processor': f'{names[0]}, {os.cpu_count()} cores',
    }


def entries(timed: Times, inputs: Mapping[Work, int]) -> list[dict[str, Any]]:
    """Rows of a latency table, see :class:`mmmpq.costs.Latency`.

    A width that ONNX Runtime does not execute takes the time of the next one that it
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
        shape = [
            ('type', work.type),
            ('in_channels', work.in_channels),
            ('out_channels', work.out_channels),
            ('kernel_size', work.kernel_size),
            ('stride', work.stride),
            ('groups', work.groups),
            ('input_size', work.input_size),
        ]
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


def _precisions(times: Mapping[Precision, Timed]) -> Iterable[Precision]:
    if INTEGER not in times:
        return [p for p in times if p == FLOAT]
    return (Precision(w, a) for w in BITS for a in A_BITS)
