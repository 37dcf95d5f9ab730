"""Fake quantization of many weights in one launch, with ranges and gradient 'lsq'.

The formulas are those of :mod:`.triton_code`. A program has one block of one tensor;
the last program of a tensor adds up the sums of all in one order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mmmpq.quantizers.kernels.native import pairs
from mmmpq.quantizers.kernels.triton_code import ALL_NAN, RANGE_MIN, round_half_even
from mmmpq.quantizers.kernels.triton_kernels import counters
from mmmpq.quantizers.kernels.triton_launch import Kernel

BLOCK = 2048
# Places in a tensor's line of the plan.
(
    X,
    RANGES,
    ROWS,
    COLS,
    CANDIDATES,
    AT,
    RANGES_AT,
    PROBS_AT,
    TABLE_AT,
    SUMS_AT,
    JOBS_AT,
) = (tl.constexpr(place) for place in range(11))
LINE = tl.constexpr(11)


@dataclass(frozen=True)
class Mix:
    """A tensor and its candidates, as of :func:`.functional.mix_fake_quantize`.

    Attributes:
        x: Dense, float32, on a GPU.
        ranges: r (m, rows), float32.
        levels, divisors, scale_grad: Of the m candidates.
        mixed: Whether there are coefficients (m,).
    """

    x: Tensor
    ranges: Tensor
    levels: tuple
    divisors: tuple
    scale_grad: tuple
    mixed: bool


class Plan:
    """Where in memory some tensors and all about them are; good while they stay there.

    Args:
        mixes: The tensors, all on one device.
    """

    def __init__(self, mixes: Sequence[Mix]) -> None:
        self.mixes = tuple(mixes)
        self.device = mixes[0].x.device
        self.starts: list[int] = []
        lines, jobs, table, values, ranges, probs, sums = [], [], [], 0, 0, 0, 0
        for i, mix in enumerate(mixes):
            m, count = mix.ranges.shape
            cols = mix.x.numel() // count
            programs = count * triton.cdiv(cols, BLOCK)
            places = [mix.x.data_ptr(), mix.ranges.data_ptr(), count, cols, m, values]
            places += [ranges, probs if mix.mixed else -1, len(table), sums, len(jobs)]
            lines.append(places)
            self.starts.append(values)
            low, high = zip(*pairs(mix.levels), strict=True)
            table += [*low, *high, *mix.divisors, *mix.scale_grad]
            jobs += [i] * programs
            values += -(-mix.x.numel() // 8) * 8  # each starts where vectors may
            ranges += m * count
            probs += m * mix.mixed
            sums += 2 * m * programs
        self.values, self.ranges, self.probs, self.sums = values, ranges, probs, sums
        self.programs = len(jobs)
        self.lines = torch.tensor(lines, device=self.device)
        self.jobs = torch.tensor(jobs, dtype=torch.int32, device=self.device)
        self.table = torch.tensor(table, dtype=torch.float32, device=self.device)

    def empty(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Memory for the values of all tensors; and each of them, laid out as its x."""
        flat = torch.empty(self.values, dtype=dtype, device=self.device)
        return flat, [
            flat.as_strided(mix.x.shape, mix.x.stride(), start)
            for mix, start in zip(self.mixes, self.starts, strict=True)
        ]

    def each(self, inputs: Sequence, none: Any) -> tuple[Sequence, Sequence, Sequence]:
        """What belongs to the tensors, to their ranges and to their coefficients, of
        all of these in turn; ``none`` where a tensor has no coefficients."""
        count = len(self.mixes)
        probs = iter(inputs[2 * count :])
        of_probs = [next(probs) if mix.mixed else none for mix in self.mixes]
        return inputs[:count], inputs[count : 2 * count], of_probs


class FakeQuantizeAll(Function):
    """Σ_j p_j · Q_j(x) of the tensors of a plan, rounded to ``dtype``.

    ``apply(plan, dtype, *x, *ranges, *probs)``, with the coefficients of those tensors
    that have some, gives a tensor for each.
    """

    @staticmethod
    def forward(ctx, plan, dtype, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        flat, out = plan.empty(dtype)
        _forward(plan.programs, (flat,), *_about(plan, tensors), constants=(BLOCK,))
        needs = zip(*plan.each(ctx.needs_input_grad[2:], False), strict=True)
        frozen = [t for t, need in zip(out, needs, strict=True) if not any(need)]
        ctx.mark_non_differentiable(*frozen)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        plan, tensors = ctx.plan, ctx.saved_tensors
        there = [grad is not None for grad in grads]
        if not any(there):
            return (None,) * (2 + len(tensors))
        flat, parts = plan.empty(next(g.dtype for g in grads if g is not None))
        torch._foreach_copy_(
            [part for part, is_there in zip(parts, there, strict=True) if is_there],
            [grad for grad in grads if grad is not None],
        )
        need_x = any(ctx.needs_input_grad[2 : 2 + len(grads)])
        to_x, to_each_x = plan.empty(torch.float32) if need_x else (flat, parts)
        # To the ranges, to the coefficients, and the sums of every program.
        sizes = plan.ranges, plan.probs, plan.sums
        buffer = torch.empty(sum(sizes), dtype=torch.float32, device=plan.device)
        _backward(
            plan.programs, (flat, to_x), buffer, plan.ranges, plan.probs,
            counters(len(grads), plan.device), *_about(plan, tensors),
            constants=(BLOCK, need_x),
        )  # fmt: skip
        to_ranges, to_probs, _sums = buffer.split(sizes)
        _, ranges, probs = plan.each(tensors, None)
        to_ranges = to_ranges.split([r.numel() for r in ranges])
        every = [
            *to_each_x,
            *(to.view(r.shape) for to, r in zip(to_ranges, ranges, strict=True)),
            *to_probs.split([len(p) for p in probs if p is not None]),
        ]
        used = there + there
        used += [t for t, p in zip(there, probs, strict=True) if p is not None]
        needed = zip(every, used, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(to if use and need else None for to, use, need in needed)


def _about(plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All coefficients (without any, what is never read), and what the plan has."""
    probs = tensors[2 * len(plan.mixes) :]
    probs = torch.cat(probs).float() if probs else plan.table
    return probs, plan.lines, plan.jobs, plan.table


@triton.jit
def _line(lines, jobs, BLOCK: tl.constexpr):
    """The program's tensor, its rows and columns, and what of them are the program's:
    the number in the tensor, the number of programs, row and columns."""
    program = tl.program_id(0)
    line = lines + tl.load(jobs + program).to(tl.int64) * LINE
    rows, cols = tl.load(line + ROWS), tl.load(line + COLS)
    number = program - tl.load(line + JOBS_AT)
    parts = (cols + BLOCK - 1) // BLOCK
    column = (number % parts) * BLOCK + tl.arange(0, BLOCK)
    return line, rows, cols, number, parts, number // parts, column


@triton.jit
def _candidate(line, j, row, m, rows, probs, table):
    """Bounds, step and its slope to the range, coefficient, factor; for float, too."""
    at = table + tl.load(line + TABLE_AT) + j
    lo, hi, divisor = tl.load(at), tl.load(at + m), tl.load(at + 2 * m)
    ranges = tl.load(line + RANGES).to(tl.pointer_type(tl.float32))
    r = tl.load(ranges + j * rows + row)
    slope = tl.where(tl.abs(r) < RANGE_MIN, 0.0, tl.where(r < 0, -1.0, 1.0)) / divisor
    s = tl.maximum(tl.abs(r), RANGE_MIN, propagate_nan=ALL_NAN) / divisor
    s = tl.where(lo > hi, 1.0, s)
    probs_at = tl.load(line + PROBS_AT)
    p = tl.load(probs + probs_at + j, mask=probs_at >= 0, other=1.0)
    return lo, hi, s, slope, p, tl.load(at + 3 * m)


@Kernel
@triton.jit
def _forward(out, probs, lines, jobs, table, BLOCK: tl.constexpr):
    line, rows, cols, _number, _parts, row, column = _line(lines, jobs, BLOCK)
    mask = column < cols
    at = row * cols + column
    x = tl.load(line + X).to(tl.pointer_type(tl.float32))
    xs = tl.load(x + at, mask=mask, other=0.0)
    m = tl.load(line + CANDIDATES)
    total = tl.zeros([BLOCK], tl.float32)
    j = m * 0
    while j < m:
        lo, hi, s, _slope, p, _factor = _candidate(line, j, row, m, rows, probs, table)
        q = tl.maximum(xs * (1.0 / s), lo, propagate_nan=ALL_NAN)
        q = round_half_even(tl.minimum(q, hi, propagate_nan=ALL_NAN)) * s
        total += tl.where(lo > hi, xs, q) * p
        j += 1
    to = out + tl.load(line + AT) + at
    tl.store(to, total.to(out.dtype.element_ty), mask=mask)


@Kernel
@triton.jit(do_not_specialize=('all_ranges', 'all_probs'))
def _backward(
    grad, grad_x, buffer, all_ranges: tl.int64, all_probs: tl.int64, counters, probs,
    lines, jobs, table, BLOCK: tl.constexpr, NEED_X: tl.constexpr,
):  # fmt: skip
    line, rows, cols, number, parts, row, column = _line(lines, jobs, BLOCK)
    mask = column < cols
    at = row * cols + column
    x = tl.load(line + X).to(tl.pointer_type(tl.float32))
    xs = tl.load(x + at, mask=mask, other=0.0)
    place = tl.load(line + AT) + at
    gs = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(line + CANDIDATES)
    passed = tl.zeros([BLOCK], tl.float32)
    # Two sums of every candidate and program: Σ g q, and Σ g x inside / s.
    sums = buffer + all_ranges + all_probs + tl.load(line + SUMS_AT)
    programs = rows * parts
    j = m * 0
    while j < m:
        lo, hi, s, _slope, p, _factor = _candidate(line, j, row, m, rows, probs, table)
        v = xs * (1.0 / s)
        q = tl.maximum(v, lo, propagate_nan=ALL_NAN)
        q = tl.minimum(q, hi, propagate_nan=ALL_NAN)
        q = tl.where(lo > hi, v, q)
        inside = q == v
        q = tl.where(lo > hi, v, round_half_even(q))
        passed += tl.where(inside, p, 0.0)
        tl.store(sums + j * programs + number, tl.sum(gs * q))
        clipped = tl.sum(tl.where(inside, gs * v, 0.0))
        tl.store(sums + (m + j) * programs + number, clipped)
        j += 1
    if NEED_X:
        tl.store(grad_x + place, gs * passed, mask=mask)
    tl.debug_barrier()
    counter = counters + tl.load(jobs + tl.program_id(0))
    if tl.atomic_add(counter, 1, sem='acq_rel') == programs - 1:
        _finish(
            line, m, rows, parts, sums, buffer, all_ranges, probs, table, BLOCK
        )  # fmt: skip
        tl.store(counter, 0)


@triton.jit
def _finish(
    line, m, rows, parts, sums, buffer, all_ranges, probs, table, BLOCK: tl.constexpr
):
    """The gradients of a tensor's ranges and coefficients, from its programs' sums."""
    to_ranges = buffer + tl.load(line + RANGES_AT)
    probs_at = tl.load(line + PROBS_AT)
    # Side by side: the rows, each with all of its parts; or the parts of the one row.
    count = tl.where(rows > 1, rows, parts)
    length = rows * parts // count
    j = m * 0
    while j < m:
        to_p, to_r = 0.0, 0.0
        start = count * 0
        while start < count:
            index = start + tl.arange(0, BLOCK)
            mask = index < count
            level, inside = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            at = sums + j * rows * parts + index * length
            k = length * 0
            while k < length:
                level += tl.load(at + k, mask=mask, other=0.0, cache_modifier='.cg')
                of = at + k + m * rows * parts
                inside += tl.load(of, mask=mask, other=0.0, cache_modifier='.cg')
                k += 1
            row = tl.minimum(index, rows - 1)
            lo, hi, s, slope, p, factor = _candidate(
                line, j, row, m, rows, probs, table
            )
            to = tl.where(lo > hi, 0.0, (level - inside) * p * factor * slope)
            tl.store(to_ranges + j * rows + index, to, mask=mask & (rows > 1))
            to_r += tl.sum(to)
            to_p += tl.sum(level * s)
            start += BLOCK
        tl.store(to_ranges + j, to_r, mask=rows == 1)
        tl.store(buffer + all_ranges + probs_at + j, to_p, mask=probs_at >= 0)
        j += 1
