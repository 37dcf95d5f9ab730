"""The discrete choice under budgets: a multiple-choice knapsack, solved by MILP."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag


def solve(
    scores: Sequence[np.ndarray],
    costs: Sequence[Sequence[np.ndarray]],
    limits: Sequence[float],
    allowed: Sequence[np.ndarray] | None = None,
) -> list[int]:
    """One candidate per group: maximise Σ scores subject to every Σ cost ≤ limit.

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
    flat = np.concatenate([np.asarray(s, dtype=float) for s in scores])
    upper = np.ones(flat.size)
    if allowed is not None:
        upper = np.concatenate(allowed).astype(float)
    one_each = LinearConstraint(block_diag([np.ones((1, m)) for m in sizes]), 1, 1)
    table = [np.concatenate([np.asarray(c, float) for c in cost]) for cost in costs]
    # The solver keeps constraints to a tolerance, the budget is to be kept exactly: so
    # what it returns is checked, and asked again a little inside if need be.
    for inside in (0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4):
        constraints = [one_each]
        for cost, limit in zip(table, limits, strict=True):
            unit = max(abs(limit), 1e-12)
            bound = limit / unit - inside
            constraints.append(LinearConstraint(cost[None] / unit, -np.inf, bound))
        result = milp(
            -flat, integrality=1, bounds=Bounds(0, upper), constraints=constraints
        )
        if result.x is None:
            break
        parts = np.split(result.x, np.cumsum(sizes)[:-1])
        choice = [int(part.argmax()) for part in parts]
        if _within(choice, costs, limits):
            return choice
    # Nothing strictly inside: the cheapest choice may lie on the bound itself.
    shares = [
        sum(
            np.asarray(cost[g], float) / max(abs(n), 1e-12)
            for cost, n in zip(costs, limits, strict=True)
        )
        + (0 if allowed is None else np.where(allowed[g], 0, np.inf))
        for g in range(len(sizes))
    ]
    choice = [int(np.argmin(share)) for share in shares]
    if _within(choice, costs, limits):
        return choice
    raise ValueError('budgets: no choice of candidates meets all of them at once')


def _within(choice, costs, limits) -> bool:
    return all(
        sum(float(cost[g][j]) for g, j in enumerate(choice)) <= limit
        for cost, limit in zip(costs, limits, strict=True)
    )
