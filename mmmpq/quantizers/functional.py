"""Uniform fake quantization as pure functions with straight-through gradients."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# (qmin, qmax): the integer levels of one candidate; None is float, the identity.
Levels = Optional[tuple[int, int]]

# Elements worked on at once on a CPU: the intermediate results stay in its cache.
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
    @staticmethod
    def forward(ctx, x, scale, probs, levels, scale_grad):
        ctx.save_for_backward(x, scale, probs)
        ctx.levels, ctx.scale_grad = levels, scale_grad
        scale, probs = _working(x, scale, probs)
        inverse = scale.reciprocal()
        step = scale if probs is None else scale * _column(probs, scale)
        out = torch.empty_like(x)
        for xc, oc in _chunks((x, out), scale):
            xc, into = _working(x, xc, oc)
            work = torch.empty_like(xc)
            for j, level in enumerate(levels):
                if level is None:
                    term, factor = xc, probs[j]
                else:
                    torch.mul(xc, inverse[j], out=work)
                    term, factor = work.clamp_(*level).round_(), step[j]
                if j == 0:
                    torch.mul(term, factor, out=into)
                else:
                    into.addcmul_(term, factor)
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
        inverse = scale.reciprocal()
        grad_x = torch.empty_like(x) if need_x else None
        grad_scale = torch.zeros_like(scale)
        grad_probs = torch.zeros_like(probs) if need_probs else None
        grad = _laid_out_as(grad, x)

        for xc, gc, dc in _chunks((x, grad, grad_x if need_x else x), scale):
            xc, gc, into = _working(x, xc, gc, dc)
            v, passed = torch.empty_like(xc), torch.empty_like(xc)
            for j, level in enumerate(ctx.levels):
                if level is None:
                    term = gc
                else:
                    torch.mul(xc, inverse[j], out=v)
                    term = _inside(gc, v, level, out=passed)
                if need_x and probs is None:
                    into.copy_(term)
                elif need_x and j == 0:
                    torch.mul(term, probs[j], out=into)
                elif need_x:
                    into.addcmul_(term, probs[j])
                if level is None:
                    if need_probs:
                        grad_probs[j] += _dot(gc, xc, probs[j])
                elif need_scale or need_probs:
                    if need_scale:
                        grad_scale[j] -= _dot(passed, v, scale[j])
                    rounded = _dot(gc, v.clamp_(*level).round_(), scale[j])
                    if need_scale:
                        grad_scale[j] += rounded
                    if need_probs:
                        grad_probs[j] += (rounded * scale[j]).sum()
            if need_x and into is not dc:
                dc.copy_(into)
        if need_scale:
            if probs is not None:
                grad_scale *= _column(probs, scale)
            for j, factor in enumerate(ctx.scale_grad):
                grad_scale[j] *= factor
            grad_scale = grad_scale.to(dtypes[0])
        if need_probs:
            grad_probs = grad_probs.to(dtypes[1])
        return grad_x, grad_scale if need_scale else None, grad_probs, None, None


def _inside(grad: Tensor, v: Tensor, levels: tuple[int, int], out: Tensor) -> Tensor:
    """``grad`` where v lies in [qmin, qmax], both included, and 0 elsewhere.

    One pass, where a comparison and a product with its bools take many times as long;
    its bounds are exclusive, so they lie the least bit outside.
    """
    least = torch.finfo(torch.float32)
    low, high = (q * (1 + least.eps) for q in levels)
    return torch.ops.aten.hardtanh_backward.grad_input(
        grad, v, low - least.tiny, high, grad_input=out
    )


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Σ a·b, over all that shares one element of ``like``."""
    if like.numel() == 1:
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(like.shape)
    return (a * b).sum_to_size(like.shape)


def _working(like: Tensor, *tensors: Tensor | None):
    """At least float32: half precision cannot hold the sums, nor 8 bits exactly."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return tuple(t if t is None else t.detach().to(dtype) for t in tensors)


def _column(probs: Tensor, scale: Tensor) -> Tensor:
    return probs.reshape(-1, *[1] * (scale.dim() - 1))


def _laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the memory layout of ``like``, so that both flatten alike."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _chunks(tensors: Sequence[Tensor], scale: Tensor):
    """Pieces of tensors of one layout that fit a CPU's cache; elsewhere the whole."""
    x = tensors[0]
    if x.is_cuda or scale[0].numel() > 1:
        return [tensors]
    order = sorted(range(x.dim()), key=lambda d: (-x.stride(d), d))
    flat = [t.permute(order) for t in tensors]
    if not all(t.is_contiguous() for t in flat):
        return [tensors]
    return zip(*(t.view(-1).split(CHUNK) for t in flat)) if x.numel() else []
