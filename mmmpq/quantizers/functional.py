"""Uniform fake quantization as pure functions with straight-through gradients."""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from mmmpq.quantizers.kernels import native

# (qmin, qmax): the integer levels of one candidate; None is float, the identity.
Levels = tuple[int, int] | None

RANGE_MIN = 1e-8  # of a trained range; native.cpp and triton_code have it, too


def uniform_levels(bits: int, signed: bool) -> Levels:
    """Integer levels of a linear quantizer, zero among them.

    Signed: ±(2^(b-1) - 1), symmetric. Unsigned: 0 to 2^b - 1. 32 bits: None (float).
    """
    if bits == 32:
        return None
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-top if signed else 0, top)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    levels: Levels,
    scale_grad: float = 1.0,
    offset: Tensor | None = None,
    gradient: str = 'lsq',
) -> Tensor:
    """(round(clip(x / s + z, qmin, qmax)) - z) · s, straight-through.

    With v = x / s + z and q = round(clip(v)) - z, inside meaning qmin ≤ v ≤ qmax:

    * ``gradient='lsq'``: d/dx is 1 inside and 0 outside; d/ds is q - x / s inside and
      q outside (Learned Step Size Quantization, 2020, arXiv 1902.08153).
    * ``'clip'``: d/ds is 0 inside (PACT: Parameterized Clipping Activation for
      Quantized Neural Networks, 2018, arXiv 1805.06085).
    * ``'identity'``: d/dx is 1 everywhere; the rest as with 'lsq'.

    d/dz is 0 inside and -s outside.

    Args:
        x: Any shape.
        scale: Step s, broadcastable against ``x``; positive.
        levels: (qmin, qmax), or None to return ``x`` as it is.
        scale_grad: Factor on the gradient of ``scale``.
        offset: z, of the shape of ``scale``; None stands for 0.
        gradient: One of the three above.
    """
    if levels is None:
        return x
    offset = None if offset is None else offset[None]
    how = (levels,), (scale_grad,), gradient, None
    return _apply(x, scale[None], offset, None, *how)


def mix_fake_quantize(
    x: Tensor,
    scale: Tensor,
    probs: Tensor | None,
    levels: Sequence[Levels],
    scale_grad: Sequence[float],
    offset: Tensor | None = None,
    gradient: str = 'lsq',
    divisors: Sequence[float] | None = None,
) -> Tensor:
    """Σ_j p_j · Q_j(x): the composite of all candidate widths in one tensor.

    Saves ``x`` and the small tensors for the backward pass, not a copy per candidate.

    Args:
        x: Any shape.
        scale: Steps (m, ...), each ``scale[j]`` broadcastable against ``x``.
        probs: Coefficients (m,); None, of one candidate, stands for 1.
        levels: m pairs (qmin, qmax); None stands for float.
        scale_grad: m factors on the gradient of ``scale``.
        offset: z (m, ...), of the shape of ``scale``; None stands for 0.
        gradient: As of :func:`fake_quantize`.
        divisors: n (m), for ranges in place of steps: ``scale`` is then r (m, 1), or
            (m, x.shape[0]) with a range for every output channel, and the steps are
            max(|r|, 1e-8) / n.
    """
    divisors = None if divisors is None else tuple(divisors)
    how = tuple(levels), tuple(scale_grad), gradient, divisors
    return _apply(x, scale, offset, probs, *how)


def recomputing(*quantized: Tensor) -> AbstractContextManager:
    """Within it, operations do not save ``quantized`` for their backward pass.

    They take each one anew out of what its fake quantization has saved: x, which is
    then the only copy. Tensors that no fake quantization made are saved as ever, and so
    are all of them under activation checkpointing, and by a compiler.
    """
    if torch.compiler.is_compiling() or saving_is_hooked():
        return nullcontext()
    nodes = {
        t.data_ptr(): t.grad_fn
        for t in quantized
        if getattr(t.grad_fn, '_forward_cls', None) is _MixFakeQuantize and t.numel()
    }
    if not nodes:
        return nullcontext()

    def pack(tensor: Tensor) -> Any:
        node = nodes.get(tensor.data_ptr())
        # A linear layer saves its weight transposed, its input without batches.
        return tensor if node is None else (node, tensor.shape, tensor.stride())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        node, shape, stride = packed
        x, *small = node.saved_tensors
        return _forward(x, *small, node.levels, node.divisors).as_strided(shape, stride)

    return saved_tensors_hooks(pack, unpack)


def saving_is_hooked() -> bool:
    """Whether hooks on saved tensors are set, as by activation checkpointing."""
    top = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
    return top is None or top(True) is not None


def _apply(x, scale, offset, probs, levels, scale_grad, gradient, divisors):
    if not torch.compiler.is_compiling():
        return _MixFakeQuantize.apply(
            x, scale, offset, probs, levels, scale_grad, gradient, divisors
        )
    bounds = [bound for pair in native.pairs(levels) for bound in pair]
    how = bounds, list(scale_grad), gradient, list(divisors or ())
    return torch.ops.mmmpq.fake_quantize(x, scale, offset, probs, *how)


class _MixFakeQuantize(Function):
    @staticmethod
    def forward(ctx, x, scale, offset, probs, levels, scale_grad, gradient, divisors):
        ctx.save_for_backward(x, scale, offset, probs)
        ctx.levels, ctx.divisors = levels, divisors
        ctx.scale_grad, ctx.gradient = scale_grad, gradient
        return _forward(x, scale, offset, probs, levels, divisors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, *small = ctx.saved_tensors
        how = ctx.levels, ctx.divisors, ctx.scale_grad, ctx.gradient
        grads = _gradients(grad, x, small, *how, ctx.needs_input_grad[0])
        needed = zip(grads, (x, *small), ctx.needs_input_grad, strict=False)
        return *(
            None if not need else g if g.dtype == t.dtype else g.to(t.dtype)
            for g, t, need in needed
        ), *[None] * 4


def _gradients(grad, x, small, levels, divisors, scale_grad, gradient, need_x):
    """Those to x and the small tensors, in dtypes of the kernels' choice."""
    dense = _dense(x)
    kernels = _kernels(dense, small[0])
    backward = kernels.backward if kernels else _backward
    how = levels, divisors, scale_grad, gradient
    return backward(_laid_out_as(grad, dense), dense, *small, *how, need_x)


def _kernels(x: Tensor, scale: Tensor) -> ModuleType | None:
    """The compiled form for a dense ``x``, or None: the plain form below."""
    if x.device.type == 'cpu':
        return native if native.takes(x, scale) else None
    triton_kernels = _triton()
    return triton_kernels if triton_kernels and triton_kernels.takes(x, scale) else None


@cache
def _triton() -> ModuleType | None:
    """The kernels for GPUs, if Triton is installed and they are not switched off."""
    if native.setting() == 'plain' or importlib.util.find_spec('triton') is None:
        return None
    return importlib.import_module('mmmpq.quantizers.kernels.triton_kernels')


def _forward(x, scale, offset, probs, levels, divisors):
    x = _dense(x)
    kernels = _kernels(x, scale)
    if kernels:
        return kernels.forward(x, scale, offset, probs, levels, divisors)
    wide, scale, offset, probs = _working(x, x, scale, offset, probs)
    steps = _steps(scale, divisors, x)
    total = torch.zeros_like(wide)
    for j, level in enumerate(levels):
        q = wide
        if level is not None:
            s, z = _of(j, steps, offset, wide)
            q = wide.mul(s.reciprocal()).add_(z).clamp_(*level).round_().sub_(z).mul_(s)
        total = q if probs is None else total.addcmul_(q, probs[j])
    return total.to(x.dtype)


def _backward(
    grad, x, scale, offset, probs, levels, divisors, scale_grad, gradient, need_x
) -> tuple[Tensor | None, ...]:
    """As :func:`.kernels.native.backward`, one candidate after the other."""
    x, grad, scale, offset, probs = _working(x, x, grad, scale, offset, probs)
    steps = _steps(scale, divisors, x)
    grad_x = torch.zeros_like(x) if need_x else None
    grad_steps = torch.zeros_like(steps)
    grad_offset = None if offset is None else torch.zeros_like(offset)
    grad_probs = None if probs is None else torch.zeros_like(probs)
    for j, level in enumerate(levels):
        p = 1.0 if probs is None else probs[j]
        if level is None:
            q, passed = x, grad
        else:
            s, z = _of(j, steps, offset, x)
            u = x * s.reciprocal()
            v = u + z
            q = v.clamp(*level).round_().sub_(z)
            inside = torch.where((v >= level[0]) & (v <= level[1]), grad, 0)
            slope = grad * q - inside * (q if gradient == 'clip' else u)
            grad_steps[j] = slope.sum_to_size(s.shape) * p * scale_grad[j]
            if offset is not None:
                missed = (inside - grad).sum_to_size(s.shape)
                grad_offset[j] = missed * s * p
            passed = grad if gradient == 'identity' else inside
            q = q.mul_(s)
        if need_x:
            grad_x += passed * p
        if probs is not None:
            grad_probs[j] = (grad * q).sum()
    if divisors is not None:
        slope = torch.where(scale.abs() >= RANGE_MIN, scale.sign(), 0)
        slope = slope / scale.new_tensor(divisors)[:, None]
        grad_steps = grad_steps.view_as(scale) * slope
    return grad_x, grad_steps, grad_offset, grad_probs


def _steps(scale: Tensor, divisors: tuple | None, x: Tensor) -> Tensor:
    """Steps (m, ...), each broadcastable against ``x``."""
    if divisors is None:
        return scale
    steps = scale.abs().clamp_min(RANGE_MIN) / scale.new_tensor(divisors)[:, None]
    if steps.shape[1] == 1:
        return steps[:, 0]
    return steps.reshape(len(divisors), -1, *[1] * (x.dim() - 1))


def _of(j: int, scale: Tensor, offset: Tensor | None, x: Tensor):
    """Step and offset of candidate j."""
    return scale[j], scale.new_zeros(()) if offset is None else offset[j]


def _working(like: Tensor, *tensors: Tensor | None):
    """At least float32: half precision cannot hold the sums, nor 8 bits exactly."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return tuple(t if t is None else t.detach().to(dtype) for t in tensors)


def _laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the memory layout of ``like``, so that both flatten alike."""
    if tensor.stride() == like.stride() and tensor.dtype == like.dtype:
        return tensor
    return torch.empty_like(like).copy_(tensor)


def _dense(x: Tensor) -> Tensor:
    """``x``, copied only if its memory has gaps or overlaps."""
    if x.is_contiguous():
        return x
    order = sorted(range(x.dim()), key=lambda d: (-x.stride(d), d))
    return x if x.permute(order).is_contiguous() else x.contiguous()
