"""From probabilities to the policy that fits, and what is left of the budgets spent."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from mmmpq.layers import on_host
from mmmpq.search.solver import solve
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table

# Nats that spending the whole of every budget is worth.
TIE = 0.01


def most_probable(
    space: SearchSpace,
    tables: Sequence[Table],
    probs: Sequence[Tensor] | None = None,
) -> list[int]:
    """The choice that maximises Σ_g log p_g subject to every budget.

    Between candidates that are as good as equally probable the dearer one is taken:
    what is left of a budget is of no use. Without a budget it is each group's argmax.

    Args:
        space: The search space.
        tables: Cost tables.
        probs: p of each group on the host, float64; default: those of ``space``.
    """
    probs = on_host(space.probs()) if probs is None else probs
    if not tables:
        return [int(p.argmax()) for p in probs]
    costs, limits = problem(tables)
    scores = []
    for g, p in enumerate(probs):
        log_p = np.log(p.numpy().clip(1e-12))
        shares = [
            cost[g] / max(limit, 1e-12)
            for cost, limit in zip(costs, limits, strict=True)
        ]
        scores.append(log_p + TIE * np.mean(shares, axis=0))
    return solve(scores, costs, limits)


def spend(
    choice: Sequence[int],
    gains: Sequence[np.ndarray],
    tables: Sequence[Table],
) -> list[int]:
    """Upgrades of ``choice`` that gain most, within what is left of every budget.

    A group may only move to a candidate that costs at least as much under every budget
    and that gains something.

    Args:
        choice: One candidate per group, feasible.
        gains: For each group, how much the loss falls if it moves to a candidate (m,);
            0 for the present one.
    """
    costs, limits = problem(tables)
    allowed = []
    for g, j in enumerate(choice):
        dearer = np.all([cost[g] >= cost[g][j] for cost in costs], axis=0)
        mask = dearer & (np.asarray(gains[g]) > 0)
        mask[j] = True
        allowed.append(mask)
    return solve(gains, costs, limits, allowed)


def measure_gains(
    space: SearchSpace,
    choice: Sequence[int],
    tables: Sequence[Table],
    loss_of: Callable[[Sequence[int]], float],
    step: Callable[[], None] | None = None,
) -> list[np.ndarray]:
    """How much the loss falls when one group alone leaves ``choice``.

    Only moves that cost more under some budget and fit on their own are measured.

    Args:
        loss_of: Loss of the discrete net of a choice.
        step: Called after each measurement, to show progress.
    """
    costs, limits = problem(tables)
    spent = [sum(float(c[g][j]) for g, j in enumerate(choice)) for c in costs]
    base = loss_of(choice)
    gains = []
    for g, group in enumerate(space.groups):
        gain = np.zeros(len(group.candidates))
        for j in range(len(group.candidates)):
            more = [float(c[g][j] - c[g][choice[g]]) for c in costs]
            fits = all(s + m <= n for s, m, n in zip(spent, more, limits, strict=True))
            if j == choice[g] or not fits or max(more) <= 0:
                continue
            moved = list(choice)
            moved[g] = j
            gain[j] = base - loss_of(moved)
            if step is not None:
                step()
        gains.append(gain)
    return gains


def problem(
    tables: Sequence[Table],
) -> tuple[list[list[np.ndarray]], list[float]]:
    """Costs and limits of the tables, as :func:`solve` takes them."""
    costs = [[v.numpy() for v in t.values] for t in tables]
    return costs, [t.limit - t.constant for t in tables]
