"""The Prob-1 regulariser of BP-NAS."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmmpq.layers import padded
from mmmpq.losses.penalty import Penalty
from mmmpq.registry import LOSSES


def prob1(probs: Tensor) -> Tensor:
    """Π_j (1 - p_j) of a group: 0 if and only if one p_j is 1.

    The maximum, at uniform p over m candidates, is ((m - 1) / m)^m; the gradient with
    respect to a softmax's logits is p_k · (Σ_l p_l G_l - G_k), G_k = Π_{j≠k} (1 - p_j).

    Args:
        probs: (..., m), summing to 1 over m; zeros more or less do not matter.
    """
    return _Product.apply(1 - probs)


class _Product(torch.autograd.Function):
    """Π_j x_j over the last dimension. The backward pass of ``torch.prod`` asks the
    device whether there is a zero among the factors."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.prod(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        own = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
        others = x[..., None, :].masked_fill(own, 1).prod(-1)
        return grad[..., None] * others


@LOSSES.register_module()
class Prob1Regularizer(Penalty):
    """λ · Σ_g Π_j (1 - p_gj): drives every group to one candidate.

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026. The ramp is ours: the gradient is zero at uniform p and
    then favours whoever is ahead, so that it should come late.

    Args:
        weight: λ once the ramp is done.
        ramp: Shares of the search at which the weight starts to grow from 0 and at
            which it is ``weight``.
    """

    name = 'prob1'

    def __init__(
        self, weight: float = 0.5, ramp: tuple[float, float] = (0.6, 0.9)
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(
                f'Prob1Regularizer.weight: found {weight!r}; accepted are numbers >= 0'
            )
        if not 0 <= ramp[0] <= ramp[1] <= 1:
            raise ValueError(
                f'Prob1Regularizer.ramp: found {ramp!r}; accepted are two shares of '
                'the search in order, such as (0.6, 0.9)'
            )
        self.weight, self.ramp = weight, tuple(ramp)

    def forward(
        self, probs: Sequence[Tensor], ratios: Tensor, progress: float
    ) -> Tensor:
        start, end = self.ramp
        if start < progress < end:
            grown = (progress - start) / (end - start)
        else:
            grown = float(progress >= end)
        return self.weight * grown * prob1(padded(probs)).sum()
