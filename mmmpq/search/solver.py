"""The discrete choice under budgets: a multiple-choice knapsack, solved by MILP."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array

# The MILP rounds at 1e-6: so much is what is left of a budget beside the cheapest
# choice, and so much the largest difference between the scores of a group.
_BUDGET, _SCORE = 1e6, 1e3
_ROUNDING = 1e-12  # of sums, as a share of what is added up
# Where scores are as good as equal, choices just over a budget are without number:
# after so many of them the MILP is to stay so far (a share) below it, if it can.
_EXCLUDED, _MARGIN = 8, 1e-5
# And to prove that none comes nearer to it would take for ever: what is best after so
# many nodes is taken. Scores that differ need few.
_NODES = 200
_STOPPED = (1, 4)  # statuses of SciPy: by a limit


def solve(
    scores: Sequence[np.ndarray],
    costs: Sequence[Sequence[np.ndarray]],
    limits: Sequence[float],
    allowed: Sequence[np.ndarray] | None = None,
) -> list[int]:
    """One candidate per group: maximise Σ scores subject to every Σ cost ≤ limit.

    The MILP keeps a budget to a tolerance only. A choice of its that exceeds one is
    excluded, with all that cost at least as much in the groups that make it too dear,
    and the MILP asked again: so the first inside every budget is the best of them, or,
    after some rounds, the best of those that leave 1e-5 of every budget. Where scores
    are as good as equal, so that only what is spent decides, the search for it is
    bounded.

    Args:
        scores: For each group, the score of every candidate (m,); finite.
        costs: For each budget, for each group, the cost of every candidate (m,).
        limits: For each budget, its bound less what is constant.
        allowed: For each group, a mask (m,) of the candidates that may be taken.

    Returns:
        The index chosen in each group.

    Raises:
        ValueError: No choice meets the limits.
    """
    sizes = [len(s) for s in scores]
    starts = np.cumsum([0, *sizes[:-1]])
    flat = np.concatenate([np.asarray(s, float) for s in scores])
    flat = flat * (_SCORE / (max(map(np.ptp, scores)) or 1.0))
    open_ = np.ones(flat.size, bool) if allowed is None else np.concatenate(allowed)
    one_each = block_diag([np.ones((1, m)) for m in sizes], format='csr')
    constraints = [LinearConstraint(one_each, 1, 1)]
    budgets = []
    for cost, limit in zip(costs, limits, strict=True):
        cost = np.concatenate([np.asarray(c, float) for c in cost])
        least = np.minimum.reduceat(np.where(open_, cost, np.inf), starts)
        budgets.append((cost, least, limit))
    bounds = []
    for cost, least, limit in budgets:
        slack = limit - least.sum()
        slack += _ROUNDING * (np.abs(least).sum() + abs(limit))
        more = cost - np.repeat(least, sizes)
        open_ = open_ & (more <= slack)
        more = np.where(open_, more, 0)[None] * (_BUDGET / max(slack, 1e-300))
        bounds.append(csr_array(more))
    rounds, margin, nodes = 0, 0.0, _NODES
    while True:
        most = _BUDGET * (1 - margin)
        result = milp(
            -flat,
            integrality=1,
            bounds=Bounds(0, open_.astype(float)),
            constraints=constraints
            + [LinearConstraint(row, -np.inf, most) for row in bounds],
            options=dict(mip_rel_gap=0, node_limit=nodes),
        )
        rounds += 1
        if result.x is None and result.status in _STOPPED:
            nodes *= 10  # there may be one
            continue
        if result.x is None and margin:
            margin = 0.0
            continue
        if result.x is None:
            raise ValueError(
                'budgets: no choice of candidates meets all of them at once'
            )
        parts = np.split(result.x, starts[1:])
        choice = [int(part.argmax()) for part in parts]
        places = starts + choice
        cuts = [
            _cover(cost, least, limit, places, sizes)
            for cost, least, limit in budgets
            if _total(cost[places]) > limit
        ]
        if not cuts:
            return choice
        constraints += cuts
        if rounds == _EXCLUDED:
            margin = _MARGIN


def _cover(
    cost: np.ndarray,
    least: np.ndarray,
    limit: float,
    places: np.ndarray,
    sizes: Sequence[int],
) -> LinearConstraint:
    """Excludes a choice over a budget, and every one that is as dear where it matters.

    Few groups suffice to exceed the budget with the others at their cheapest: not all
    of them may take what costs as much as in that choice, or more.
    """
    most = cost[places]
    order = np.argsort(least - most, kind='stable')
    low, high = 0, len(order)  # so many of the dearest groups do not, and do
    while high - low > 1:
        middle = (low + high) // 2
        tried = least.copy()
        tried[order[:middle]] = most[order[:middle]]
        low, high = (low, middle) if _total(tried) > limit else (middle, high)
    cover = np.zeros(len(order), bool)
    cover[order[:high]] = True
    row = np.repeat(cover, sizes) & (cost >= np.repeat(most, sizes))
    return LinearConstraint(csr_array(row[None].astype(float)), -np.inf, high - 1)


def _total(costs: np.ndarray) -> float:
    """Their sum from the first to the last: it never falls when one of them rises."""
    return sum(costs.tolist())
