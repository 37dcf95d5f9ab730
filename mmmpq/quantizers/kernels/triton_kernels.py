"""Fake quantization on a GPU: one Triton kernel forward, one backward.

The formulas are those of :mod:`mmmpq.quantizers.functional`. A program works through
blocks of one row, in float32, with all candidates in its registers, and sums up their
gradients on the way; the last program of a row adds up the sums of all in one order, so
that results repeat bit by bit.
"""

import math
from functools import lru_cache

import torch
import triton
from torch import Tensor

from mmmpq.quantizers.kernels import triton_code as code
from mmmpq.quantizers.kernels.native import GRADIENTS, floats, plain, rows

BLOCK = 1024  # values of a program at a time
# Backward, up to so many candidates: their sums, too, are to fit into the registers.
BLOCKS = ((1, 1024), (5, 512), (7, 256), (math.inf, 128))
PROGRAMS = 8  # of a multiprocessor


def takes(x: Tensor, scale: Tensor) -> bool:
    """Whether the kernels serve ``x``, a dense tensor, with these steps."""
    return (
        x.device.type == 'cuda'
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and rows(x, scale) is not None
    )


def forward(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    probs: Tensor | None,
    levels: tuple,
    divisors: tuple | None,
) -> Tensor:
    """Σ_j p_j · Q_j(x), as the plain form gives it; ``x`` is dense."""
    out = torch.empty_like(x)
    if x.numel():
        programs, *sizes, even = _sizes(x.numel(), rows(x, scale), BLOCK, x.device)
        small, flags = _small(x, scale, offset, probs, levels, divisors)
        code.forward(
            programs, (x, out), *small, *sizes,
            constants=(even, len(levels), BLOCK, *flags),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    probs: Tensor | None,
    levels: tuple,
    divisors: tuple | None,
    scale_grad: tuple,
    gradient: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients to x, scale, offset and probs; ``grad`` lies in memory as ``x``."""
    m, count = len(levels), rows(x, scale)
    block = next(b for most, b in BLOCKS if m <= most)
    programs, *sizes, even = _sizes(x.numel(), count, block, x.device)
    grad_x = torch.empty_like(x) if need_x else None
    # To scale, offset, probs; behind them the sums of every program.
    size = m * count
    buffer = x.new_empty(3 * (size + m * programs), dtype=torch.float32)
    small, flags = _small(x, scale, offset, probs, levels, divisors)
    code.backward(
        programs, (x, grad, grad_x if need_x else x), buffer,
        counters(count, x.device), floats(scale_grad, x.device), *small, *sizes,
        constants=(
            even, m, block, *flags, GRADIENTS.index(gradient), need_x,
            programs == count,
        ),
    )  # fmt: skip
    to_scale = buffer[:size].view(scale.shape)
    to_offset = to_probs = None
    if offset is not None:
        to_offset = buffer[size : 2 * size].view(offset.shape)
    if probs is not None:
        to_probs = buffer[2 * size : 3 * size]
        to_probs = to_probs if count == 1 else to_probs.view(m, count).sum(1)
    return grad_x, to_scale, to_offset, to_probs


@lru_cache(maxsize=4096)
def _sizes(
    numel: int, count: int, block: int, device: torch.device
) -> tuple[int, int, int, int, bool]:
    """Programs; rows, columns, and the programs of a row, which share its blocks; and
    whether the columns are whole vectors."""
    count = max(1, count)
    cols = numel // count
    blocks = max(1, -(-cols // block))
    # Some blocks for each, as its start and end take a while, but work for all.
    few, many = _programs(device)
    parts = min(blocks, max(few, min(many, blocks // 8)))
    parts = max(1, min(parts, many // count))
    return count * parts, count, cols, parts, cols % 16 == 0


@lru_cache
def _programs(device: torch.device) -> tuple[int, int]:
    """The fewest programs that occupy a device, and as many as it holds at a time."""
    if device.type != 'cuda':
        return 2, 4
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return 2 * count, PROGRAMS * count


_zeros: dict[tuple, Tensor] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """Zeros of a stream, which the kernels leave as they were (at least ``count``)."""
    stream = None
    if device.type == 'cuda':
        stream = triton.runtime.driver.active.get_current_stream(device.index)
    zeros = _zeros.get((device, stream))
    if zeros is None or len(zeros) < count:
        zeros = torch.zeros(max(4096, count), dtype=torch.int32, device=device)
        _zeros[device, stream] = zeros
    return zeros


def _small(x, scale, offset, probs, levels, divisors) -> tuple[tuple, tuple]:
    """The small tensors in float32, of which the first stands in for those that are
    None and never read; and what there is of them, and which candidates are float."""
    scale = plain(scale)
    table, is_float = _table(levels, divisors, x.device)
    small = (
        scale,
        scale if offset is None else plain(offset),
        scale if probs is None else plain(probs),
        table,
    )
    there = (t is not None for t in (divisors, offset, probs))
    return small, (is_float, *there)


@lru_cache(maxsize=4096)
def _table(
    levels: tuple, divisors: tuple | None, device: torch.device
) -> tuple[Tensor, int]:
    """qmin, qmax and divisor of each candidate (3 m,), and a bit for each float one."""
    low, high = zip(*(level or (0, 0) for level in levels), strict=True)
    is_float = sum(1 << j for j, level in enumerate(levels) if level is None)
    return floats((*low, *high, *(divisors or ())), device), is_float
