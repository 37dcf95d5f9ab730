"""Uniform fake quantization as pure functions with straight-through gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# (qmin, qmax): the integer levels of one candidate; None is float, the identity.
Levels = tuple[int, int] | None

# Elements worked on at once by each thread of a CPU: few enough that what is in between
# stays in its cache, enough that the calls themselves cost little.
CHUNK = 1 << 17


def uniform_levels(bits: int, signed: bool) -> Levels:
    """Integer levels of a linear quantizer, zero among them.

    Signed: ±(2^(b-1) - 1), symmetric. Unsigned: 0 to 2^b - 1. 32 bits: None (float).
    """
    if bits == 32:
        return None
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-top if signed else 0, top)


def fake_quantize(
    x: Tensor, scale: Tensor, levels: Levels, scale_grad: float = 1.0
) -> Tensor:
    """round(clip(x / s, qmin, qmax)) · s, straight-through.

    With v = x / s and r = round(clip(v)): d/dx is 1 inside [qmin, qmax] and 0 outside;
    d/ds is r - v inside and r outside (Learned Step Size Quantization, 2020, arXiv
    1902.08153).

    Args:
        x: Any shape.
        scale: Step s, broadcastable against ``x``; positive.
        levels: (qmin, qmax), or None to return ``x`` as it is.
        scale_grad: Factor on the gradient of ``scale``.
    """
    if levels is None:
        return x
    return _MixFakeQuantize.apply(x, scale[None], None, (levels,), (scale_grad,))


def mix_fake_quantize(
    x: Tensor,
    scale: Tensor,
    probs: Tensor,
    levels: Sequence[Levels],
    scale_grad: Sequence[float],
) -> Tensor:
    """Σ_j p_j · Q_j(x): the composite of all candidate widths in one tensor.

    Saves ``x`` and the small tensors for the backward pass, not a copy per candidate.

    Args:
        x: Any shape.
        scale: Steps (m, ...), each ``scale[j]`` broadcastable against ``x``.
        probs: Coefficients (m,).
        levels: m pairs (qmin, qmax); None stands for float.
        scale_grad: m factors on the gradient of ``scale``.
    """
    return _MixFakeQuantize.apply(x, scale, probs, tuple(levels), tuple(scale_grad))


class _MixFakeQuantize(Function):
    """Works on v = x / s of all candidates at once, (m, elements), chunk by chunk."""

    @staticmethod
    def forward(ctx, x, scale, probs, levels, scale_grad):
        ctx.save_for_backward(x, scale, probs)
        ctx.levels, ctx.scale_grad = levels, scale_grad
        scale, probs = _working(x, scale, probs)
        scale = _units_for_float(scale, levels)
        inverse = scale.reciprocal()
        step = scale if probs is None else scale * _column(probs, scale)
        x = _dense(x)
        out = torch.empty_like(x)
        v = None
        for xc, oc in _chunks((x, out), scale):
            xc, into = _working(x, xc, oc)
            v = _buffer(v, xc, len(levels))
            torch.mul(xc, inverse, out=v)
            _round(v, levels)
            _weighted_sum(v, step, into)
            if into is not oc:
                oc.copy_(into)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, probs = ctx.saved_tensors
        need_x, need_scale, need_probs = ctx.needs_input_grad[:3]
        dtypes = scale.dtype, probs.dtype if probs is not None else None
        scale, probs = _working(x, scale, probs)
        shape, scale = scale.shape, _units_for_float(scale, ctx.levels)
        inverse = scale.reciprocal()
        x = _dense(x)
        grad = _laid_out_as(grad, x)
        grad_x = torch.empty_like(x)
        passed_sum, rounded_sum = torch.zeros_like(scale), torch.zeros_like(scale)
        v = passed = None
        for xc, gc, dc in _chunks((x, grad, grad_x), scale):
            xc, gc, into = _working(x, xc, gc, dc)
            v = _buffer(v, xc, len(ctx.levels))
            passed = into[None] if probs is None else _buffer(passed, xc, len(v))
            torch.mul(xc, inverse, out=v)
            for level, row, inside in zip(ctx.levels, v, passed, strict=True):
                _mask(gc, row, level, out=inside)
            if need_x and probs is not None:
                _weighted_sum(passed, _column(probs, scale), into)
            if need_scale:
                _add_sums(passed_sum, passed, xc)
            if need_scale or need_probs:
                _round(v, ctx.levels)
                _add_sums(rounded_sum, v, gc)
            if into is not dc:
                dc.copy_(into)
        grad_scale = grad_probs = None
        if need_scale:
            grad_scale = rounded_sum - passed_sum * inverse
            if probs is not None:
                grad_scale *= _column(probs, scale)
            for j, factor in enumerate(ctx.scale_grad):
                grad_scale[j] *= 0 if ctx.levels[j] is None else factor
            grad_scale = grad_scale.reshape(shape).to(dtypes[0])
        if need_probs:
            grad_probs = (rounded_sum * scale).flatten(1).sum(1).to(dtypes[1])
        return grad_x if need_x else None, grad_scale, grad_probs, None, None


def _working(like: Tensor, *tensors: Tensor | None):
    """At least float32: half precision cannot hold the sums, nor 8 bits exactly."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return tuple(t if t is None else t.detach().to(dtype) for t in tensors)


def _units_for_float(scale: Tensor, levels: Sequence[Levels]) -> Tensor:
    """Steps (m, ...), those of float candidates 1; (m, 1) if they are per tensor."""
    if scale[0].numel() == 1:
        scale = scale.reshape(-1, 1)
    if None not in levels:
        return scale
    pairs = zip(scale, levels, strict=True)
    return torch.stack([torch.ones_like(s) if n is None else s for s, n in pairs])


def _column(probs: Tensor, scale: Tensor) -> Tensor:
    return probs.reshape(-1, *[1] * (scale.dim() - 1))


def _buffer(before: Tensor | None, x: Tensor, rows: int) -> Tensor:
    """(rows, *x.shape), the one of the chunk before where it fits."""
    if before is not None and before.shape[1:] == x.shape:
        return before
    return x.new_empty(rows, *x.shape)


def _mask(grad: Tensor, v: Tensor, level: Levels, out: Tensor) -> None:
    """``grad`` where v lies in [qmin, qmax], both included, and 0 elsewhere.

    A comparison and a product with its bools would take several times as long as this
    one pass. Its bounds are exclusive, so they lie the least bit outside.
    """
    if level is None:
        out.copy_(grad)
        return
    least = torch.finfo(torch.float32)
    low, high = (q * (1 + least.eps) for q in level)
    torch.ops.aten.hardtanh_backward.grad_input(
        grad, v, low - least.tiny, high, grad_input=out
    )


def _round(v: Tensor, levels: Sequence[Levels]) -> None:
    """v to its integer levels, in place; float candidates stay what they are."""
    rows = [(row, level) for row, level in zip(v, levels, strict=True) if level]
    for row, level in rows:
        row.clamp_(*level)
    for row in [v] if len(rows) == len(v) else [row for row, _ in rows]:
        row.round_()


def _weighted_sum(terms: Tensor, weights: Tensor, out: Tensor) -> None:
    """out = Σ_j weights_j · terms_j; of (m, elements), in one pass."""
    if terms.dim() == 2 and weights.shape[1] == 1:
        torch.mv(terms.t(), weights.reshape(-1), out=out)
    else:
        torch.sum(terms * weights, 0, out=out)


def _add_sums(total: Tensor, terms: Tensor, x: Tensor) -> None:
    """total += Σ terms · x over all elements that share an element of ``total``."""
    if total.dim() == 2 and total.shape[1] == 1:
        total[:, 0].addmv_(terms, x)
    else:
        total += (terms * x).sum_to_size(total.shape)


def _laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the memory layout of ``like``, so that both flatten alike."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _order(x: Tensor) -> list[int]:
    """The dimensions from the largest to the smallest stride."""
    return sorted(range(x.dim()), key=lambda d: (-x.stride(d), d))


def _dense(x: Tensor) -> Tensor:
    """``x``, copied only if its memory has gaps or overlaps."""
    return x if x.permute(_order(x)).is_contiguous() else x.contiguous()


def _chunks(tensors: Sequence[Tensor], scale: Tensor):
    """Flat pieces of dense tensors of one layout; the whole if ``scale`` is no scalar.

    On a CPU they fit its cache; elsewhere they bound the memory of what is in between.
    """
    x = tensors[0]
    if scale.dim() > 2 or scale.shape[1] > 1:
        return [tensors]
    size = CHUNK * (torch.get_num_threads() if x.device.type == 'cpu' else 128)
    order = _order(x)
    pieces = (t.permute(order).view(-1).split(size) for t in tensors)
    return zip(*pieces, strict=True)
