"""A feasible start of the logits, the bound that leads to the budget, and the way back
inside it."""

from collections.abc import Callable, Sequence

import torch

from mmmpq.layers import Softmax
from mmmpq.search.space import CostTable, SearchSpace

STARTS = ('biased', 'continuation')


def bias_logits(
    space: SearchSpace, tables: Sequence[CostTable], margin: float = 0.02
) -> float:
    """theta_gj = -c · B_gj / mean_j B_gj with the smallest c ≥ 0 that is feasible.

    c is found by bisection so that E[B] ≤ (1 - margin) · B_max for every budget (or
    half way between the cheapest choice and B_max where that is more). B_gj is the mean
    over the budgets of the candidate's cost relative to its group's mean. Where budgets
    pull against each other and no c will do, :func:`project` does the rest.

    Returns:
        c; 0 without a budget, which leaves the logits as they are.
    """
    if not tables:
        return 0.0
    limits = [_inside(t, t.limit, margin) for t in tables]
    zeros = [torch.zeros_like(logits) for logits in space.logits]

    def feasible(c: float) -> bool:
        _shift(space, zeros, costs, -c)
        return all(
            e <= limit
            for e, limit in zip(_expected(space, tables), limits, strict=True)
        )

    with torch.no_grad():
        costs = _logit_costs(space, _relative_costs(tables))
        c = _smallest(feasible)
        _shift(space, zeros, costs, -c)
    project(space, tables, limits, slack=0.0)
    return c


@torch.no_grad()
def project(
    space: SearchSpace,
    tables: Sequence[CostTable],
    limits: Sequence[float],
    slack: float = 1e-3,
) -> bool:
    """Moves probabilities that are outside a limit to the nearest ones inside.

    q_gj ∝ p_gj · exp(-c · B_gj) with the smallest c ≥ 0 for which E_q[B] ≤ limit: among
    all q with that cost it is the one that minimises KL(q ‖ p). Several limits are met
    one after the other, until all of them hold.

    Args:
        space: Its logits are changed, if need be.
        tables: Cost tables.
        limits: Upper bound on E[B] of each table, in its unit.
        slack: Share of the limit that is to be left.

    Returns:
        Whether the logits had to move.
    """
    targets = [
        _inside(t, limit, slack) for t, limit in zip(tables, limits, strict=True)
    ]
    moved = False
    for _ in range(100):
        costs = _expected(space, tables)
        over = [
            b
            for b, (e, target) in enumerate(zip(costs, targets, strict=True))
            if e > target
        ]
        if not over:
            break
        moved = True
        for b in over:
            _tilt(space, tables[b], targets[b])
    return moved


def _tilt(space: SearchSpace, table: CostTable, target: float) -> None:
    before = [logits.clone() for logits in space.logits]
    costs = _logit_costs(space, [v / table.limit for v in table.values])

    def feasible(c: float) -> bool:
        _shift(space, before, costs, -c)
        return float(table.expected(space.probs())) <= target

    _shift(space, before, costs, -_smallest(feasible, tolerance=0.02))


def _inside(table: CostTable, limit: float, slack: float) -> float:
    """(1 - slack) · limit, or half way to the cheapest choice if that is more."""
    return max((1 - slack) * limit, min((table.min + limit) / 2, limit))


def _expected(space: SearchSpace, tables: Sequence[CostTable]) -> list[float]:
    probs = space.probs()
    return [float(t.expected(probs)) for t in tables]


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


def _shift(
    space: SearchSpace,
    before: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    size: float,
) -> None:
    for logits, start, step in zip(space.logits, before, steps, strict=True):
        logits.copy_(start + size * step)


def _logit_costs(
    space: SearchSpace, values: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Costs of the candidates as costs of the logits.

    Factorised logits take the mean over the pairs that share a width.
    """
    return [
        _per_logit(group.relaxation, v.to(group.relaxation.logits))
        for group, v in zip(space.groups, values, strict=True)
    ]


def _per_logit(relaxation: Softmax, values: torch.Tensor) -> torch.Tensor:
    if not relaxation.factorised:
        return values
    parts = []
    for index, count in (
        (relaxation.w_index, len(relaxation.w_bits)),
        (relaxation.a_index, len(relaxation.a_bits)),
    ):
        total = values.new_zeros(count).index_add(0, index, values)
        parts.append(total / torch.bincount(index, minlength=count))
    return torch.cat(parts)


def bounds(
    tables: Sequence[CostTable],
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
    left = max(0.0, 1 - progress / until) if until > 0 else 0.0
    return [
        t.limit + max(0.0, (1 + headroom) * e - t.limit) * left**2
        for t, e in zip(tables, start, strict=True)
    ]


def _relative_costs(tables: Sequence[CostTable]) -> list[torch.Tensor]:
    return [
        torch.stack([v / v.mean().clamp_min(1e-12) for v in values]).mean(0)
        for values in zip(*(t.values for t in tables), strict=True)
    ]
