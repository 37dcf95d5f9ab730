"""From probabilities to the policy that fits, and what is left of the budgets spent."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from mmmpq.layers import on_host
from mmmpq.search.solver import solve
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table
from mmmpq.search.terms import Terms

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
        beside = [cost.beside(choice, g) for cost in costs]
        dearer = np.all([cost >= cost[j] for cost in beside], axis=0)
        mask = dearer & (np.asarray(gains[g]) > 0)
        mask[j] = True
        allowed.append(mask)
    return solve(gains, costs, limits, allowed)


def upgrades(
    space: SearchSpace,
    choice: Sequence[int],
    tables: Sequence[Table],
    most: int | None = None,
) -> list[tuple[int, int]]:
    """Moves (group, candidate) away from ``choice`` that cost more under some budget
    and fit on their own.

    Args:
        most: How many, if not all: then each group has as many, from its dearest one
            down in even steps, and one at least.
    """
    costs, limits = problem(tables)
    spent = [cost.of(choice) for cost in costs]
    options = []
    for g, group in enumerate(space.groups):
        priced = []
        beside = [cost.beside(choice, g) for cost in costs]
        for j in range(len(group.candidates)):
            more = [float(c[j] - c[choice[g]]) for c in beside]
            fits = all(s + m <= n for s, m, n in zip(spent, more, limits, strict=True))
            if j != choice[g] and fits and max(more) > 0:
                shares = [m / max(n, 1e-12) for m, n in zip(more, limits, strict=True)]
                priced.append((max(shares), j))
        options.append([j for _, j in sorted(priced, reverse=True)])
    if most is not None and sum(map(len, options)) > most:
        each = max(most // len(options), 1)
        options = [js[:: -(-len(js) // each)] if js else js for js in options]
    return [(g, j) for g, js in enumerate(options) for j in sorted(js)]


def measure_gains(
    space: SearchSpace,
    choice: Sequence[int],
    tables: Sequence[Table],
    loss_of: Callable[[Sequence[int]], float],
    moves: Iterable[tuple[int, int]] | None = None,
) -> list[np.ndarray]:
    """How much the loss falls when one group alone leaves ``choice``.

    Args:
        loss_of: Loss of the discrete net of a choice.
        moves: Those to measure; default: all :func:`upgrades`.
    """
    gains = [np.zeros(len(group.candidates)) for group in space.groups]
    base = loss_of(choice)
    for g, j in upgrades(space, choice, tables) if moves is None else moves:
        moved = list(choice)
        moved[g] = j
        gains[g][j] = base - loss_of(moved)
    return gains


def problem(tables: Sequence[Table]) -> tuple[list[Terms], list[float]]:
    """Costs and limits of the tables, as :func:`solve` takes them."""
    return [t.terms for t in tables], [t.limit - t.constant for t in tables]
