"""A feasible start of the logits, and the bound that leads to the budget."""

from collections.abc import Sequence

import torch

from mmmpq.search.space import CostTable, SearchSpace

STARTS = ('biased', 'continuation')


def bias_logits(
    space: SearchSpace, tables: Sequence[CostTable], margin: float = 0.02
) -> float:
    """theta_gj = -c · B_gj / mean_j B_gj with the smallest c ≥ 0 that is feasible.

    c is found by bisection so that E[B] ≤ (1 - margin) · B_max for every budget (or
    half way between the cheapest choice and B_max where that is more). B_gj is the mean
    over the budgets of the candidate's cost relative to its group's mean.

    Returns:
        c.
    """
    relative = _relative_costs(tables)
    targets = [
        max((1 - margin) * t.limit, (t.min + t.limit) / 2)
        if t.min > (1 - margin) * t.limit
        else (1 - margin) * t.limit
        for t in tables
    ]

    def feasible(c: float) -> bool:
        probs = [torch.softmax(-c * r, 0) for r in relative]
        return all(
            float(t.expected(probs)) <= limit for t, limit in zip(tables, targets)
        )

    low, high = 0.0, 0.0
    if not feasible(0.0):
        high = 1.0
        while not feasible(high) and high < 1e6:
            low, high = high, 2 * high
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if feasible(middle) else (middle, high)
    with torch.no_grad():
        for group, r in zip(space.groups, relative):
            set_logits(group.relaxation, -high * r)
    return high


def set_logits(relaxation, values: torch.Tensor) -> None:
    """Sets logits so that the candidates have these, up to a constant.

    Factorised logits take the mean over the pairs that share a width.
    """
    if not relaxation.factorised:
        relaxation.logits.copy_(values)
        return
    parts = []
    for index, count in (
        (relaxation.w_index, len(relaxation.w_bits)),
        (relaxation.a_index, len(relaxation.a_bits)),
    ):
        index = index.to(values.device)
        total = values.new_zeros(count).index_add(0, index, values)
        parts.append(total / torch.bincount(index, minlength=count))
    relaxation.logits.copy_(torch.cat(parts))


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
        progress: t, share of the search done, 0 to 1.
        until: Share of the search at which B_max is reached.
        headroom: Room above E[B] at the start.
    """
    left = max(0.0, 1 - progress / until) if until > 0 else 0.0
    return [
        t.limit + max(0.0, (1 + headroom) * e - t.limit) * left**2
        for t, e in zip(tables, start)
    ]


def _relative_costs(tables: Sequence[CostTable]) -> list[torch.Tensor]:
    means = [
        torch.stack([v / v.mean().clamp_min(1e-12) for v in values]).mean(0)
        for values in zip(*(t.values for t in tables))
    ]
    return means
