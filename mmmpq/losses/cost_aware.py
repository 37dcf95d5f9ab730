"""The cost-aware loss of DNAS."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmmpq.losses.expected_cost import ExpectedCost, Pricing, checked
from mmmpq.registry import LOSSES


def cost_factor(cost: Tensor, beta: float, gamma: float) -> Tensor:
    """β · (log C)^γ, with the gradient β γ (log C)^(γ - 1) / C.

    Below C = e, where the logarithm's power turns steep and then undefined, the factor
    stays β.

    Args:
        cost: C, any shape; in bits or BOPs it is far above e.
        beta: β.
        gamma: γ.
    """
    return beta * torch.log(cost.clamp_min(math.e)) ** gamma


@LOSSES.register_module()
class CostAwareLoss(ExpectedCost):
    """The factor β · (log E[C])^γ of the task loss; C is the searchable layers' cost.

    The natural logarithm of C in bits (costs in bytes), BOPs, or a latency's
    microseconds. The expectation is that over the probabilities P_theta, whatever noise
    the mixture was drawn with.

    Source: Mixed Precision Quantization of ConvNets via Differentiable Neural
    Architecture Search, 2018, arXiv 1812.00090. Our default of β is 0.1, of γ 0.9, both
    set in the configs.

    Args:
        beta: β; no default.
        gamma: γ; no default.
        cost: Config of the cost and its reference input: 'BOPs' for the search by
            compute, 'WeightBytes' for that by size.

    Raises:
        ValueError: β or γ is missing or negative, or β is 0; the cost cannot be read.
    """

    name = 'cost_aware'
    multiplies = True

    def __init__(
        self,
        beta: float | None = None,
        gamma: float | None = None,
        cost: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dict(type='BOPs') if cost is None else cost)
        self.beta = checked('CostAwareLoss.beta', beta, positive=True)
        self.gamma = checked('CostAwareLoss.gamma', gamma)
        self.per_unit = self.at.cost.bits_per_unit

    def bind(self, pricing: Pricing) -> None:
        """Has the candidates priced.

        Raises:
            ValueError: Even the dearest choice costs no more than e, which leaves the
                factor constant.
        """
        super().bind(pricing)
        most = self.per_unit * (self.table.max - self.table.constant)
        if not most > math.e:
            raise ValueError(
                f'CostAwareLoss.cost: the searchable layers cost at most {most:.3g} in '
                f'this model; accepted is a {self.table.name} far above e'
            )

    def forward(
        self, probs: Sequence[Tensor], ratios: Tensor, progress: float
    ) -> Tensor:
        cost = self.per_unit * self.expected(probs)
        return cost_factor(cost, self.beta, self.gamma).float()
