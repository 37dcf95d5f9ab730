"""A feasible start of the logits, the bound that leads to the budget, and the way back
inside it."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmmpq.quantizers.base import constant
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table, Tables, per_logit

STARTS = ('biased', 'continuation')
# A device is not asked whether all limits hold: several may need some rounds, of which
# one is enough in nearly every step and four leave less than a percent over.
ROUNDS = 4
POWERS = (0.0, *(2.0**k for k in range(-40, 21)))


@torch.no_grad()
def score_logits(space: SearchSpace, harms: Sequence[np.ndarray]) -> None:
    """theta_gj = -Ω_gj / T: before any step the least harmful is the most probable.

    T is the mean over the groups of the standard deviation of Ω over their candidates,
    so that probabilities differ where it matters and none vanishes.

    Args:
        space: Its logits are set.
        harms: Ω of each group (m,), such as of :mod:`mmmpq.baselines.fisher`.
    """
    unit = float(np.mean([h.std() for h in harms])) or 1.0
    scores = [torch.as_tensor((h.min() - h) / unit) for h in harms]
    space.move(per_logit(space, scores).to(space.logits[0].device))


@torch.no_grad()
def bias_logits(
    space: SearchSpace, tables: Sequence[Table], margin: float = 0.02
) -> float:
    """theta_gj -= c · B_gj / mean_j B_gj with the smallest c ≥ 0 that is feasible.

    c is found by bisection so that E[B] ≤ (1 - margin) · B_max for every budget (or
    half way between the cheapest choice and B_max where that is more). B_gj is the mean
    over the budgets of the candidate's cost relative to its group's mean. Where budgets
    pull against each other and no c will do, :func:`project` does the rest.

    Returns:
        c; 0 without a budget, which leaves the logits as they are.
    """
    if not tables:
        return 0.0
    tables = Tables(tables)
    limits = [_inside(t, t.limit, margin) for t in tables]
    start = torch.cat(space.logits)
    costs = per_logit(space, _relative_costs(tables)).to(start)

    def feasible(c: float) -> bool:
        expected = _expected(space, tables, start - c * costs).tolist()
        return all(e <= limit for e, limit in zip(expected, limits, strict=True))

    c = _smallest(feasible)
    space.move(start - c * costs)
    project(space, tables, limits, slack=0.0)
    return c


@torch.no_grad()
def project(
    space: SearchSpace,
    tables: Sequence[Table],
    limits: Sequence[float],
    slack: float = 1e-3,
) -> Tensor:
    """Moves probabilities that are outside a limit to the nearest ones inside.

    q_gj ∝ p_gj · exp(-c · B_gj) with the smallest c ≥ 0 for which E_q[B] ≤ limit: among
    all q with that cost it is the one that minimises KL(q ‖ p). Several limits are met
    one after the other, until all of them hold; on an accelerator, which is not waited
    for, ``ROUNDS`` times.

    Args:
        space: Its logits are changed, if need be.
        tables: Cost tables.
        limits: Upper bound on E[B] of each table, in its unit.
        slack: Share of the limit that is to be left.

    Returns:
        Whether the logits had to move, a tensor on their device.
    """
    tables = Tables(tables)
    targets = [
        _inside(t, limit, slack) for t, limit in zip(tables, limits, strict=True)
    ]
    before = theta = torch.cat(space.logits)
    waits = _waits(theta) or space.batch is None
    for _ in range(100 if waits else min(ROUNDS, len(tables))):
        costs = _expected(space, tables, theta).unbind()
        over = [e > target for e, target in zip(costs, targets, strict=True)]
        if waits and not any(over):
            break
        for b, outside in enumerate(over):
            if not waits or outside:
                tilted = _tilt(space, tables, theta, b, targets[b])
                theta = torch.where(outside, tilted, theta)
    space.move(theta)
    return (theta != before).any()


def _tilt(
    space: SearchSpace, tables: Tables, theta: Tensor, b: int, target: float
) -> Tensor:
    """θ - c · B_b with the smallest c ≥ 0 for which E[B_b] ≤ target, to 2 %."""
    costs = tables.of_logits(theta.device)[b]

    def feasible(c: Tensor) -> Tensor:
        moved = theta - c[..., None] * costs
        return _expected(space, tables, moved)[..., b] <= target

    if space.batch is None:
        like = theta.new_tensor
        c = like(_smallest(lambda c: bool(feasible(like(c))), tolerance=0.02))
    else:
        c = _smallest_at_once(feasible, theta)
    return theta - c * costs


def _waits(theta: Tensor) -> bool:
    """Whether what it is can be asked for at no cost."""
    return theta.device.type == 'cpu'


def _inside(table: Table, limit: float, slack: float) -> float:
    """(1 - slack) · limit, or half way to the cheapest choice if that is more."""
    return max((1 - slack) * limit, min((table.min + limit) / 2, limit))


def _expected(space: SearchSpace, tables: Tables, theta: Tensor) -> Tensor:
    """E[B] at the logits θ: (..., L) -> (..., budgets).

    Without a batch θ is (L,), and the logits are θ afterwards.
    """
    if space.batch is None:
        space.move(theta)
        return tables.expected(space.probs())
    return tables.expected_of(space.batch.packed(space.batch.probs(theta)))


def _smallest(feasible: Callable[[float], bool], tolerance: float = 1e-9) -> float:
    """The smallest c ≥ 0 that is feasible, by bisection to a relative ``tolerance``."""
    if feasible(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not feasible(high) and high < 1e6:
        low, high = high, 2 * high
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _smallest_at_once(feasible: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """What :func:`_smallest` gives to a tolerance of 0.02, in two calls and no read.

    Its doubling and halving end in [h / 2, h], h the smallest feasible power of two.
    Bisection then stops at high - low = h / 2^(k+1) ≤ 0.02 · high: after k = 5 steps if
    that leaves high ≥ 25/32 · h, and after k = 6 else, with high the smallest feasible
    multiple of the width.

    Args:
        feasible: Of every one of some c (n,).
        like: A tensor on the device.
    """
    powers = constant(POWERS, like)
    least = torch.where(feasible(powers), powers, math.inf).amin()
    h = least.clamp_max(POWERS[-1])
    grid = h * constant([m / 128 for m in range(65, 129)], like)
    high = torch.where(feasible(grid), grid, h)
    coarse = high[1::2].amin()
    return torch.where(coarse >= 25 / 32 * h, coarse, high.amin())


def bounds(
    tables: Sequence[Table],
    start: Sequence[float],
    progress: float,
    until: float,
    headroom: float = 0.02,
) -> list[float]:
    """B(t) of every budget: from just above E[B] at the start down to B_max.

    B(t) = B_max + (B_0 - B_max) · (1 - t / until)², with B_0 the larger of B_max and
    (1 + headroom) · E[B] at the start.

    Args:
        tables: Cost tables.
        start: E[B] at the start, for each table.
        progress: t, share of the search done since the logits began to move.
        until: That share at which B_max is reached.
        headroom: Room above E[B] at the start.
    """
    remaining = max(0.0, 1 - progress / until) if until > 0 else 0.0
    return [
        t.limit + max(0.0, (1 + headroom) * e - t.limit) * remaining**2
        for t, e in zip(tables, start, strict=True)
    ]


def _relative_costs(tables: Sequence[Table]) -> list[torch.Tensor]:
    return [
        torch.stack([v / v.mean().clamp_min(1e-12) for v in values]).mean(0)
        for values in zip(*(t.steering for t in tables), strict=True)
    ]
