"""Bits taken away one step at a time, each measured in the net as it has become."""

from collections.abc import Callable, Sequence

import numpy as np

from mmmpq.search.discretise import problem
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table


def choose(
    space: SearchSpace,
    tables: Sequence[Table],
    loss_of: Callable[[Sequence[int]], float],
    step: Callable[[float], None] | None = None,
) -> list[int]:
    """Starts with the dearest candidates and cheapens a group at a time.

    Each step takes the group that loses least for what it saves, with all others as
    they are by then, until every budget is kept. What a step would lose is measured
    anew only where it looked best (lazily), as it changes little from step to step.

    Args:
        space: The search space.
        tables: Cost tables, at least one.
        loss_of: Loss of the net of a choice.
        step: Called with the share of the way that is gone.

    Raises:
        ValueError: The budgets cannot be met.
    """
    costs, limits = problem(tables)
    costs = [c.scaled(1 / max(n, 1e-12)) for c, n in zip(costs, limits, strict=True)]
    price = [np.sum(each, axis=0) for each in zip(*costs, strict=True)]
    order = [np.argsort(-p, kind='stable') for p in price]
    place = [0] * len(order)

    def choice(at: Sequence[int]) -> list[int]:
        return [int(o[i]) for o, i in zip(order, at, strict=True)]

    def over() -> float:
        now = choice(place)
        return max(c.of(now) - 1 for c in costs)

    first = over()
    loss = loss_of(choice(place))
    rates = {g: (-np.inf, 0.0) for g in range(len(order)) if len(order[g]) > 1}
    while over() > 1e-12:
        fresh: set[int] = set()
        while True:
            if not rates:
                raise ValueError('budgets: the cheapest choice does not meet them')
            g = min(rates, key=lambda k: (rates[k][0], k))
            if g in fresh:
                break
            at = list(place)
            at[g] += 1
            then = loss_of(choice(at))
            saved = sum(c.of(choice(place)) - c.of(choice(at)) for c in costs)
            rates[g] = (then - loss) / max(saved, 1e-12), then
            fresh.add(g)
        place[g] += 1
        loss = rates[g][1]
        rates[g] = (-np.inf, 0.0)
        if place[g] == len(order[g]) - 1:
            del rates[g]
        if step is not None:
            step(1 - max(0.0, over()) / first)
    return choice(place)
