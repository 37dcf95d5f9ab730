"""A mixing whose probabilities also feel what a mixture hides."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmmpq.layers.mixing import Composite
from mmmpq.layers.shares import Shares
from mmmpq.quantizers import Quantizer
from mmmpq.registry import MIXINGS


@MIXINGS.register_module(name='jensen')
class Jensen(Composite):
    """The composite, with the gradient of its Jensen gap.

    Errors of unlike widths cancel in a mixture t = Σ_j p_j Q_j, so that a width seems
    to do less harm in it than alone. What is missing, to second order of the loss, is

        G = ½ Σ h Σ_j p_j (Q_j - t)²,    ∂G / ∂p_j = ½ Σ h (Q_j - t)²  where Σ p = 1,

    0 where p is one-hot. The curvature is the diagonal of the empirical Fisher matrix,
    h = B g², with the gradient g of the mean loss of B samples with respect to t: so
    that the same backward pass gives it. Of weights and inputs, in steps of the logits
    alone; not for scaled losses (fp16), whose g² has the square of the scale.
    """

    def output(self, layer: nn.Module, x: Tensor, shares: Shares) -> Tensor:
        relaxation, count = layer.relaxation, x.shape[0]
        if not relaxation.learning:
            return super().output(layer, x, shares)
        w_probs, a_probs = shares.marginals
        w_bits, a_bits = relaxation.w_bits, relaxation.a_bits

        def weight() -> Tensor:
            t = layer.mixed_weight(w_bits, w_probs)
            of = layer.w_quantizer, layer._latent_weight(), w_bits, count
            return Gap.apply(t, w_probs, *of)

        # One for all calls of the layer: the square is that of their gradients' sum.
        stamp = relaxation.stamp(self.samples)
        mixed = layer._once(weight, ('jensen', w_bits), *stamp)
        t = layer.a_quantizer.mix(x, a_bits, a_probs)
        t = Gap.apply(t, a_probs, layer.a_quantizer, x, a_bits, count)
        return layer.compute(t, mixed, layer.bias)


class Gap(torch.autograd.Function):
    """t as it is; backward, what the gap adds to the gradient of p."""

    @staticmethod
    def forward(
        ctx: Any,
        t: Tensor,
        probs: Tensor,
        quantizer: Quantizer,
        x: Tensor,
        bits: Sequence[int],
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(t, x)
        ctx.of = quantizer, bits, count
        return t.view_as(t)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (t, x), (quantizer, bits, count) = ctx.saved_tensors, ctx.of
        curvature = count * grad.float().square()
        gaps = [(curvature * (quantizer(x, b) - t).square()).sum() / 2 for b in bits]
        return grad, torch.stack(gaps), None, None, None, None
