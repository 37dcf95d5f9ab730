"""Policies drawn from the probabilities that a search ends with."""

from collections.abc import Sequence

import numpy as np
import torch

from mmmpq.layers import on_host
from mmmpq.search.discretise import problem
from mmmpq.search.solver import solve
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table
from mmmpq.search.terms import Terms


def sample_choices(
    space: SearchSpace,
    tables: Sequence[Table],
    count: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Choices from the product of the groups' distributions, inside every budget.

    What is drawn over a budget is replaced by the choice inside it that keeps as many
    groups as possible as they were drawn, and among these takes the likelier ones:
    Σ_g (1[j = drawn] + p_gj / G) is maximised.

    Source: Mixed Precision Quantization of ConvNets via Differentiable Neural
    Architecture Search, 2018, arXiv 1812.00090, samples its nets from P_theta; the
    budget is ours.

    Args:
        space: The search space.
        tables: Cost tables; none leaves the choices as they are drawn.
        count: How many to draw; fewer come back where some are the same.
        generator: A CPU's.
    """
    costs, limits = problem(tables)
    probs = on_host(space.probs())
    choices: list[list[int]] = []
    for _ in range(count):
        drawn = [int(torch.multinomial(p, 1, generator=generator)) for p in probs]
        choice = _nearest(drawn, [p.numpy() for p in probs], costs, limits)
        if choice not in choices:
            choices.append(choice)
    return choices


def _nearest(
    drawn: list[int],
    probs: Sequence[np.ndarray],
    costs: Sequence[Terms],
    limits: Sequence[float],
) -> list[int]:
    if all(cost.of(drawn) <= limit for cost, limit in zip(costs, limits, strict=True)):
        return drawn
    scores = [p / len(probs) for p in probs]
    for score, j in zip(scores, drawn, strict=True):
        score[j] += 1
    return solve(scores, costs, limits)
