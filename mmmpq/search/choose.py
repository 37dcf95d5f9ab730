"""The choice that a search ends with: of samples the best, and what it leaves spent."""

import math
from collections.abc import Callable, Sequence

from mmmpq.pace import paced
from mmmpq.search.discretise import measure_gains, spend, upgrades
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table

ROUNDS = 3  # each measures every upgrade that fits on its own
MEASURED = 400  # upgrades in each of them, at most: a count, as clocks differ
ENOUGH = 0.99  # share of a budget from which upgrades are not worth measuring

Loss = Callable[[Sequence[int]], float]
Log = Callable[[str], None]


def best_sample(
    space: SearchSpace,
    choices: Sequence[list[int]],
    loss_of: Loss,
    table: Table,
    log: Log,
) -> list[int]:
    """The choice of least loss; the first is the most probable one, others samples.

    Args:
        loss_of: Loss of the net of a choice; one that is not finite counts as ∞.
        table: Of the cost that is logged beside it.
    """
    losses = []
    for i, choice in enumerate(choices):
        loss = loss_of(choice)
        losses.append(loss if math.isfinite(loss) else math.inf)
        name = f'sample {i} of {len(choices) - 1}' if i else 'the most probable policy'
        cost, unit = table.of(space.policy(choice)), table.unit
        log(f'Loss {loss:.4f}, {cost:.6g} {unit}: {name}')
    return choices[losses.index(min(losses))]


def spend_rest(
    space: SearchSpace,
    choice: list[int],
    tables: Sequence[Table],
    loss_of: Loss,
    log: Log,
) -> list[int]:
    """Measures upgrades of ``choice`` and takes the best that still fit."""
    for _ in range(ROUNDS):
        policy = space.policy(choice)
        spent = max(t.of(policy) / t.limit for t in tables)
        moves = upgrades(space, choice, tables, MEASURED) if spent <= ENOUGH else []
        log(
            f'{spent:.1%} of the budget is spent'
            + (f'; measuring {len(moves)} ways to spend the rest' if moves else '')
        )
        if not moves:
            break
        paced_moves = paced(moves, log, 'spending the rest')
        gains = measure_gains(space, choice, tables, loss_of, paced_moves)
        better = spend(choice, gains, tables)
        if better == choice:
            break
        choice = better
    return choice
