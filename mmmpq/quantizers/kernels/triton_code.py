"""The kernels of :mod:`.triton_kernels`: what one program does."""

import triton
import triton.language as tl

from mmmpq.quantizers.kernels.triton_launch import Kernel

# Arguments that Triton is not to compile anew for, since :class:`Kernel` does not look
# at them.
SIZES = ('rows', 'cols', 'parts')
SMALL = ('factor', 'scale', 'offset', 'probs', 'table')
RANGE_MIN = tl.constexpr(1e-8)
ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def round_half_even(v):
    """Half to even; exact for |v| < 2^22, which the levels never reach."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def _step(scale, divisor, HAS_DIVISOR: tl.constexpr):
    """The step of a scale or range, and its slope to it."""
    s = scale
    slope = 1.0
    if HAS_DIVISOR:
        slope = tl.where(tl.abs(s) < RANGE_MIN, 0.0, tl.where(s < 0, -1.0, 1.0))
        slope = slope / divisor
        s = tl.maximum(tl.abs(s), RANGE_MIN, propagate_nan=ALL_NAN) / divisor
    return s, slope


@triton.jit
def _candidate(
    j, row, rows, scale, offset, probs, table, M: tl.constexpr, IS_FLOAT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_PROBS: tl.constexpr,
):  # fmt: skip
    """Bounds, step and its slope to what is given, offset and coefficient."""
    lo = tl.load(table + j)
    hi = tl.load(table + M + j)
    divisor = 1.0
    if HAS_DIVISOR:
        divisor = tl.load(table + 2 * M + j)
    s, slope = _step(tl.load(scale + j * rows + row), divisor, HAS_DIVISOR)
    if (IS_FLOAT >> j) & 1:
        s = 1.0
    z = 0.0
    p = 1.0
    if HAS_OFFSET:
        z = tl.load(offset + j * rows + row)
    if HAS_PROBS:
        p = tl.load(probs + j)
    return lo, hi, s, slope, z, p


@Kernel
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SMALL)
def forward(
    x, out, scale, offset, probs, table, rows: tl.int64, cols: tl.int64,
    parts: tl.int64, EVEN: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr,
    IS_FLOAT: tl.constexpr, HAS_DIVISOR: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_PROBS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // parts
    if EVEN:
        cols = cols // 16 * 16  # so that Triton sees it
    candidates = ()
    for j in tl.static_range(M):
        lo, hi, s, _slope, z, p = _candidate(
            j, row, rows, scale, offset, probs, table, M, IS_FLOAT, HAS_DIVISOR,
            HAS_OFFSET, HAS_PROBS,
        )  # fmt: skip
        candidates = candidates + ((lo, hi, 1.0 / s, z, s * p),)
    start = (program % parts) * BLOCK
    while start < cols:
        column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
        mask = column < cols
        at = row * cols + column
        xs = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(M):
            lo, hi, inverse, z, p = candidates[j]
            if (IS_FLOAT >> j) & 1:
                total += xs * p
            else:
                v = xs * inverse
                if HAS_OFFSET:
                    v += z
                v = tl.maximum(v, lo, propagate_nan=ALL_NAN)
                q = round_half_even(tl.minimum(v, hi, propagate_nan=ALL_NAN))
                if HAS_OFFSET:
                    q -= z
                total += q * p
        tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
        start += parts * BLOCK


@Kernel
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SMALL)
def backward(
    x, grad, grad_x, buffer, counters, factor, scale, offset, probs, table,
    rows: tl.int64, cols: tl.int64, parts: tl.int64, EVEN: tl.constexpr,
    M: tl.constexpr, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_PROBS: tl.constexpr,
    GRADIENT: tl.constexpr, NEED_X: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // parts
    if EVEN:
        cols = cols // 16 * 16  # so that Triton sees it
    candidates = ()
    levels = ()  # Σ g q
    insides = ()  # Σ g x inside, or Σ g q inside
    missed = ()  # Σ g outside
    for j in tl.static_range(M):
        lo, hi, s, _slope, z, p = _candidate(
            j, row, rows, scale, offset, probs, table, M, IS_FLOAT, HAS_DIVISOR,
            HAS_OFFSET, HAS_PROBS,
        )  # fmt: skip
        candidates = candidates + ((lo, hi, 1.0 / s, z, p),)
        levels = levels + (tl.zeros([BLOCK], tl.float32),)
        insides = insides + (tl.zeros([BLOCK], tl.float32),)
        if HAS_OFFSET:
            missed = missed + (tl.zeros([BLOCK], tl.float32),)
    start = (program % parts) * BLOCK
    next_x, next_g = _load(x, grad, row, cols, start, BLOCK)
    while start < cols:
        column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
        mask = column < cols
        at = row * cols + column
        xs, gs = next_x.to(tl.float32), next_g.to(tl.float32)
        start += parts * BLOCK  # the next ones are on their way meanwhile
        next_x, next_g = _load(x, grad, row, cols, start, BLOCK)
        passed = tl.zeros([BLOCK], tl.float32)
        old_levels, old_insides, old_missed = levels, insides, missed
        levels = ()
        insides = ()
        missed = ()
        for j in tl.static_range(M):
            lo, hi, inverse, z, p = candidates[j]
            level, inside = old_levels[j], old_insides[j]
            if (IS_FLOAT >> j) & 1:
                level += gs * xs
                passed += p
                if HAS_OFFSET:
                    missed = missed + (old_missed[j],)
            else:
                v = xs * inverse
                if HAS_OFFSET:
                    v += z
                q = tl.maximum(v, lo, propagate_nan=ALL_NAN)
                q = tl.minimum(q, hi, propagate_nan=ALL_NAN)
                is_inside = q == v
                q = round_half_even(q)
                if HAS_OFFSET:
                    q -= z
                    missed = missed + (old_missed[j] + tl.where(is_inside, 0.0, gs),)
                level += gs * q
                if GRADIENT == 1:
                    inside += tl.where(is_inside, gs * q, 0.0)
                else:
                    inside += tl.where(is_inside, gs * xs, 0.0)
                if GRADIENT == 2:
                    passed += p
                else:
                    passed += tl.where(is_inside, p, 0.0)
            levels = levels + (level,)
            insides = insides + (inside,)
        if NEED_X:
            result = (gs * passed).to(grad_x.dtype.element_ty)
            tl.store(grad_x + at, result, mask=mask)
    size = M * rows
    part = program % parts
    for j in tl.static_range(M):
        level, inside, miss = tl.sum(levels[j]), tl.sum(insides[j]), 0.0
        if HAS_OFFSET:
            miss = tl.sum(missed[j])
        if ALONE:
            _finish(
                j, row, rows, level, inside, miss, buffer, factor, scale, offset, probs,
                table, M, IS_FLOAT, HAS_DIVISOR, HAS_OFFSET, HAS_PROBS, GRADIENT,
            )  # fmt: skip
        else:
            to = buffer + 3 * size + (j * rows + row) * parts + part
            tl.store(to, level)
            tl.store(to + size * parts, inside)
            if HAS_OFFSET:
                tl.store(to + 2 * size * parts, miss)
    if not ALONE:
        tl.debug_barrier()
        if tl.atomic_add(counters + row, 1, sem='acq_rel') == parts - 1:
            for j in tl.static_range(M):
                of = buffer + 3 * size + (j * rows + row) * parts
                level_sum = _sum(of, parts, BLOCK)
                inside_sum = _sum(of + size * parts, parts, BLOCK)
                missed_sum = 0.0
                if HAS_OFFSET:
                    missed_sum = _sum(of + 2 * size * parts, parts, BLOCK)
                _finish(
                    j, row, rows, level_sum, inside_sum, missed_sum, buffer, factor,
                    scale, offset, probs, table, M, IS_FLOAT, HAS_DIVISOR, HAS_OFFSET,
                    HAS_PROBS, GRADIENT,
                )  # fmt: skip
            tl.store(counters + row, 0)


@triton.jit
def _load(x, grad, row, cols, start, BLOCK: tl.constexpr):
    """A block of both."""
    column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    mask, at = column < cols, row * cols + column
    return tl.load(x + at, mask=mask, other=0.0), tl.load(grad + at, mask, other=0.0)


@triton.jit
def _sum(of, count, BLOCK: tl.constexpr):
    """The sum of ``count`` values that other programs have written."""
    total = tl.zeros([BLOCK], tl.float32)
    start = count * 0
    while start < count:
        index = start + tl.arange(0, BLOCK)
        total += tl.load(of + index, index < count, 0.0, cache_modifier='.cg')
        start += BLOCK
    return tl.sum(total)


@triton.jit
def _finish(
    j, row, rows, level, inside, miss, buffer, factor, scale, offset, probs, table,
    M: tl.constexpr, IS_FLOAT: tl.constexpr, HAS_DIVISOR: tl.constexpr,
    HAS_OFFSET: tl.constexpr, HAS_PROBS: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """The gradients of a row to scale, offset and coefficient of a candidate."""
    _lo, _hi, s, slope, _z, p = _candidate(
        j, row, rows, scale, offset, probs, table, M, IS_FLOAT, HAS_DIVISOR, HAS_OFFSET,
        HAS_PROBS,
    )  # fmt: skip
    if GRADIENT != 1:
        inside *= 1.0 / s
    to = buffer + j * rows + row
    if (IS_FLOAT >> j) & 1:
        tl.store(to, 0.0)
    else:
        tl.store(to, (level - inside) * p * tl.load(factor + j) * slope)
    tl.store(to + M * rows, -miss * p * s)
    tl.store(to + 2 * M * rows, level * s)
