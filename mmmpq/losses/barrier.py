"""The barrier penalty of BP-NAS."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.losses.penalty import Penalty
from mmmpq.registry import LOSSES


def barrier(ratio: Tensor, mu: float, scale: float, guard: float) -> Tensor:
    """-μ · log(log(B_max + 1 - E)), in units in which B_max = ``scale``.

    The value grows without bound as E reaches B_max and its gradient with respect to E
    is μ / ((B_max + 1 - E) · log(B_max + 1 - E)). Where the slack B_max - E is below
    ``guard``, the tangent line at ``guard`` goes on: continuously differentiable, very
    steep, and finite outside the budget as well.

    Args:
        ratio: E / B_max, any shape.
        mu: μ, the strength.
        scale: B_max in the units used. The "+ 1" makes these matter.
        guard: Slack, in the same units, below which the tangent goes on.
    """
    slack = (1 - ratio) * scale
    inside = slack.clamp_min(guard)
    value = -mu * torch.log(torch.log1p(inside))
    slope = mu / ((1 + guard) * math.log1p(guard))
    return value + slope * (guard - slack).clamp_min(0)


@LOSSES.register_module()
class BarrierPenalty(Penalty):
    """Almost no punishment inside the budget, an unbounded one at its edge.

    L_c = -μ · log(log(B_max + 1 - E[B])), added over the budgets.

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026. ``scale``, the guard and the schedule of μ are ours.

    Args:
        mu: μ at the start of the search.
        mu_end: μ at its end, reached geometrically; None keeps ``mu``.
        scale: B_max in the units used, see :func:`barrier`.
        guard: Slack, in the same units, below which the tangent goes on.
    """

    name = 'barrier'

    def __init__(
        self,
        mu: float = 0.01,
        mu_end: float | None = None,
        scale: float = 10.0,
        guard: float = 0.01,
    ) -> None:
        super().__init__()
        for key, value in dict(mu=mu, mu_end=mu_end, scale=scale, guard=guard).items():
            if value is not None and not value > 0:
                raise ValueError(
                    f'BarrierPenalty.{key}: found {value!r}; accepted are numbers > 0'
                )
        self.mu, self.mu_end = mu, mu if mu_end is None else mu_end
        self.scale, self.guard = scale, guard

    def forward(
        self, probs: Sequence[Tensor], ratios: Tensor, progress: float
    ) -> Tensor:
        mu = self.mu * (self.mu_end / self.mu) ** progress
        return barrier(ratios, mu, self.scale, self.guard).sum()
