"""Fake quantization as operators of torch, for ``torch.compile`` and ``torch.export``.

``torch.ops.mmmpq.fake_quantize`` and ``..._backward`` compute what
:func:`.functional.mix_fake_quantize` does; a compiler sees shapes and gradient, and
leaves the kernels as they are. Outside of a compiler ``torch.autograd.Function`` costs
less, and frees the quantized tensors.
"""

from collections.abc import Sequence

import torch

from mmmpq.quantizers import functional

_HOW = 'int[] bounds, float[] scale_grad, str gradient, float[] divisors'
_TENSORS = 'Tensor x, Tensor scale, Tensor? offset, Tensor? probs'
_LIBRARY = torch.library.Library('mmmpq', 'FRAGMENT')
_LIBRARY.define(f'fake_quantize({_TENSORS}, {_HOW}) -> Tensor')
_LIBRARY.define(
    f'fake_quantize_backward(Tensor grad, {_TENSORS}, {_HOW}, bool need_x) '
    '-> (Tensor, Tensor, Tensor, Tensor)'
)


def _levels(bounds: Sequence[int]) -> tuple:
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple(None if low > high else (low, high) for low, high in pairs)


@torch.library.impl(_LIBRARY, 'fake_quantize', 'CompositeExplicitAutograd')
def _forward(x, scale, offset, probs, bounds, scale_grad, gradient, divisors):
    divisors = tuple(divisors) or None
    return functional._forward(x, scale, offset, probs, _levels(bounds), divisors)


@torch.library.register_fake('mmmpq::fake_quantize', lib=_LIBRARY)
def _(x, scale, offset, probs, bounds, scale_grad, gradient, divisors):
    return torch.empty_like(functional._dense(x))


@torch.library.impl(_LIBRARY, 'fake_quantize_backward', 'CompositeExplicitAutograd')
def _backward(
    grad, x, scale, offset, probs, bounds, scale_grad, gradient, divisors, need_x
):
    how = _levels(bounds), tuple(divisors) or None, tuple(scale_grad), gradient
    small = scale, offset, probs
    grads = functional._gradients(grad, x, small, *how, need_x)
    # An operator gives a tensor in every place, none of them one of its arguments.
    return tuple(
        x.new_empty(0) if g is None else g.to(t.dtype)
        for g, t in zip(grads, (x, *small), strict=True)
    )


@torch.library.register_fake('mmmpq::fake_quantize_backward', lib=_LIBRARY)
def _(grad, x, scale, offset, probs, bounds, scale_grad, gradient, divisors, need_x):
    inputs = (functional._dense(x) if need_x else None), scale, offset, probs
    return tuple(x.new_empty(0) if t is None else torch.empty_like(t) for t in inputs)


def _setup(ctx, inputs, output):
    x, scale, offset, probs, *ctx.how = inputs
    ctx.save_for_backward(x, scale, offset, probs)


def _differentiate(ctx, grad):
    grads = torch.ops.mmmpq.fake_quantize_backward(
        grad, *ctx.saved_tensors, *ctx.how, ctx.needs_input_grad[0]
    )
    needed = zip(grads, ctx.needs_input_grad, strict=False)
    return *(g if need else None for g, need in needed), *[None] * 4


torch.library.register_autograd(
    'mmmpq::fake_quantize', _differentiate, setup_context=_setup, lib=_LIBRARY
)
