"""Fake quantization on a GPU: one Triton kernel forward, two backward.

The formulas are those of :mod:`mmmpq.quantizers.functional`. A program works on a block
of one row, in float32, with all candidates in its registers; sums are written per block
and added in one order, so that results repeat bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmmpq.quantizers.native import GRADIENTS, bounds, floats, plain, rows

BLOCK = 2048
RANGE_MIN = tl.constexpr(1e-8)
ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)


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
    count, cols, blocks = _sizes(x, scale)
    if x.numel():
        small, flags = _small(scale, offset, probs, levels, divisors)
        _forward[count * blocks,](
            x, out, count, cols, blocks, *small, M=len(levels), BLOCK=BLOCK, **flags
        )
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
    count, cols, blocks = _sizes(x, scale)
    m = len(levels)
    grad_x = torch.empty_like(x) if need_x else None
    sums = torch.zeros(3, m, count, blocks, device=x.device)
    found = torch.empty(3, m, count, device=x.device)  # to scale, offset, probs
    small, flags = _small(scale, offset, probs, levels, divisors)
    if x.numel():
        _backward[count * blocks,](
            x, grad, grad_x if need_x else x, sums, count, cols, blocks, *small, M=m,
            BLOCK=BLOCK, GRADIENT=GRADIENTS.index(gradient), NEED_X=need_x, **flags,
        )  # fmt: skip
    _finish[m * count,](
        sums, found, count, blocks, m, *small, floats(scale_grad, x.device),
        BLOCK=1024, **flags,
    )  # fmt: skip
    return (
        grad_x,
        found[0].view(scale.shape),
        None if offset is None else found[1].view(offset.shape),
        None if probs is None else found[2].sum(1),
    )


def _sizes(x: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """Rows, columns, and blocks per row."""
    count = max(1, rows(x, scale))
    cols = x.numel() // count
    return count, cols, max(1, triton.cdiv(cols, BLOCK))


def _small(scale, offset, probs, levels, divisors) -> tuple[list[Tensor], dict]:
    """The small tensors in float32, and which there are; the first one stands in for
    those that are None and never read."""
    divisor = None if divisors is None else floats(divisors, scale.device)
    given = [None if t is None else plain(t) for t in (scale, divisor, offset, probs)]
    flags = dict(
        HAS_DIVISOR=divisor is not None,
        HAS_OFFSET=offset is not None,
        HAS_PROBS=probs is not None,
    )
    low, high = bounds(levels, scale.device)
    return [*(given[0] if t is None else t for t in given), low, high], flags


@triton.jit
def _round(v):
    """Half to even; exact for |v| < 2^22, which the levels never reach."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def _candidate(
    j, row, rows, scale, divisor, offset, probs, low, high,
    HAS_DIVISOR, HAS_OFFSET, HAS_PROBS,
):  # fmt: skip
    """Bounds, step and its slope to the scale given, offset and coefficient."""
    lo = tl.load(low + j)
    hi = tl.load(high + j)
    s = tl.load(scale + j * rows + row)
    slope = 1.0
    if HAS_DIVISOR:
        n = tl.load(divisor + j)
        slope = tl.where(tl.abs(s) < RANGE_MIN, 0.0, tl.where(s < 0, -1.0, 1.0)) / n
        s = tl.maximum(tl.abs(s), RANGE_MIN, propagate_nan=ALL_NAN) / n
    s = tl.where(lo > hi, 1.0, s)
    z = 0.0
    p = 1.0
    if HAS_OFFSET:
        z = tl.load(offset + j * rows + row)
    if HAS_PROBS:
        p = tl.load(probs + j)
    return lo, hi, s, slope, z, p


@triton.jit
def _forward(
    x, out, rows, cols, blocks, scale, divisor, offset, probs, low, high,
    M: tl.constexpr, BLOCK: tl.constexpr, HAS_DIVISOR: tl.constexpr,
    HAS_OFFSET: tl.constexpr, HAS_PROBS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < cols
    at = row * cols + column
    xs = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(M):
        lo, hi, s, _slope, z, p = _candidate(
            j, row, rows, scale, divisor, offset, probs, low, high,
            HAS_DIVISOR, HAS_OFFSET, HAS_PROBS,
        )  # fmt: skip
        v = tl.maximum(xs * (1.0 / s) + z, lo, propagate_nan=ALL_NAN)
        q = (_round(tl.minimum(v, hi, propagate_nan=ALL_NAN)) - z) * s
        total += tl.where(lo > hi, xs, q) * p
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    x, grad, grad_x, sums, rows, cols, blocks, scale, divisor, offset, probs, low, high,
    M: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
    NEED_X: tl.constexpr, HAS_DIVISOR: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_PROBS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < cols
    at = row * cols + column
    xs = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    gs = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    part = M * rows * blocks
    for j in tl.static_range(M):
        lo, hi, s, _slope, z, p = _candidate(
            j, row, rows, scale, divisor, offset, probs, low, high,
            HAS_DIVISOR, HAS_OFFSET, HAS_PROBS,
        )  # fmt: skip
        is_float = lo > hi
        u = xs * (1.0 / s)
        v = u + z
        q = tl.maximum(v, lo, propagate_nan=ALL_NAN)
        q = _round(tl.minimum(q, hi, propagate_nan=ALL_NAN)) - z
        q = tl.where(is_float, xs, q)
        inside = tl.where((v >= lo) & (v <= hi), gs, 0.0)
        inside = tl.where(is_float, gs, inside)
        if GRADIENT == 2:
            total += gs * p
        else:
            total += inside * p
        slope = u
        if GRADIENT == 1:
            slope = q
        to = sums + (j * rows + row) * blocks + program % blocks
        tl.store(to, tl.sum(gs * q))
        tl.store(to + part, tl.sum(inside * slope))
        tl.store(to + 2 * part, tl.sum(inside - gs))
    if NEED_X:
        tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _finish(
    sums, found, rows, blocks, m, scale, divisor, offset, probs, low, high, factor,
    BLOCK: tl.constexpr, HAS_DIVISOR: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_PROBS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    j = program // rows
    part = m * rows * blocks
    level = tl.zeros([BLOCK], tl.float32)
    inside = tl.zeros([BLOCK], tl.float32)
    missed = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < blocks:
        at = start + tl.arange(0, BLOCK)
        mask = at < blocks
        of = sums + program.to(tl.int64) * blocks + at
        level += tl.load(of, mask=mask, other=0.0)
        inside += tl.load(of + part, mask=mask, other=0.0)
        missed += tl.load(of + 2 * part, mask=mask, other=0.0)
        start += BLOCK
    lo, hi, s, slope, _z, p = _candidate(
        j, program % rows, rows, scale, divisor, offset, probs, low, high,
        HAS_DIVISOR, HAS_OFFSET, HAS_PROBS,
    )  # fmt: skip
    g = (tl.sum(level) - tl.sum(inside)) * p * tl.load(factor + j) * slope
    tl.store(found + program, tl.where(lo > hi, 0.0, g))
    tl.store(found + m * rows + program, tl.sum(missed) * p * s)
    tl.store(found + 2 * m * rows + program, tl.sum(level) * s)
