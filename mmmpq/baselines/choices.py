"""Policies that need no gradient search: uniform, random, least estimated harm."""

from collections.abc import Sequence

import numpy as np

from mmmpq.policy import SKIP, Policy
from mmmpq.search.discretise import problem
from mmmpq.search.solver import solve
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table

TIE = 1e-3  # what spending all budgets is worth, in spreads of a mean group
SPENT = 0.95  # share of a budget that random policies spend


def least_harm(harms: Sequence[np.ndarray], tables: Sequence[Table]) -> list[int]:
    """The choice that minimises Σ_g harm_g subject to every budget.

    Args:
        harms: For each group, a number for every candidate (m,), such as the increase
            of the loss; of candidates that are equal the dearer one is taken.
        tables: Cost tables.
    """
    costs, limits = problem(tables)
    unit = np.mean([np.ptp(h) for h in harms]) or 1.0
    scores = []
    for g, harm in enumerate(harms):
        shares = [c[g] / max(n, 1e-12) for c, n in zip(costs, limits, strict=True)]
        scores.append((harm.min() - harm) / unit + TIE * np.mean(shares, axis=0))
    return solve(scores, costs, limits)


def largest_uniform(
    space: SearchSpace, tables: Sequence[Table], ends: bool = False
) -> Policy:
    """The dearest uniform net inside every budget.

    Of equally dear ones, the most balanced: W4A4 before W8A2.

    Args:
        space: The search space.
        tables: Cost tables.
        ends: Whether stem and prediction layers have the precision of all, too; they
            have 8/8 otherwise.

    Raises:
        ValueError: The groups share no candidate, or none of them fits.
    """
    inner = [g for g in space.groups if not set(g.layers) <= set(space.ends)]
    common = [
        c
        for c in (inner or space.groups)[0].candidates
        if c != SKIP and all(c in g.candidates for g in inner)
    ]
    if not common:
        raise ValueError('uniform: the groups have no candidate in common')
    fitting = []
    for candidate in common:
        policy = space.uniform(candidate, ends)
        costs = [t.of(policy) for t in tables]
        if all(c <= t.limit for c, t in zip(costs, tables, strict=True)):
            share = np.mean([c / t.limit for c, t in zip(costs, tables, strict=True)])
            fitting.append((share, min(candidate), candidate))
    if not fitting:
        limits = ', '.join(f'{t.name} {t.limit:.6g} {t.unit}' for t in tables)
        raise ValueError(
            f'budgets: no uniform precision of {", ".join(map(str, common))} is inside '
            f'{limits}; other methods mix them'
        )
    return space.uniform(max(fitting)[-1], ends)


def random_choice(tables: Sequence[Table], seed: int) -> list[int]:
    """A random choice inside every budget that spends most of one of them.

    It maximises random scores, uniform in [0, 1], subject to Σ cost ≤ limit of every
    budget and Σ cost ≥ 95 % of one, where there is such a choice.
    """
    rng = np.random.default_rng(seed)
    costs, limits = problem(tables)
    scores = [rng.random(len(values)) for values in costs[0]]
    for b in rng.permutation(len(tables)):
        least = min(SPENT * tables[b].limit, tables[b].max) - tables[b].constant
        at_least = costs[b].scaled(-1)
        try:
            return solve(scores, [*costs, at_least], [*limits, -least])
        except ValueError:  # another budget binds first
            continue
    return solve(scores, costs, limits)
