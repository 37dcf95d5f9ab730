"""Policies of one supernet for many budgets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmmpq.policy import Policy
from mmmpq.search.search import Search
from mmmpq.search.space import SearchSpace


def searches_within(
    budgets: Mapping[str, Sequence[Any]], space: SearchSpace, **options: Any
) -> dict[str, Search]:
    """A search for each name in ``budgets``, all on one space.

    Args:
        budgets: Name -> budgets that are to hold at once.
        space: The search space.
        **options: ``model``, ``seed`` and ``log`` of the searches.

    Raises:
        ValueError: A budget cannot be met; it is named, and [min, max].
    """
    searches = {}
    for name, each in budgets.items():
        try:
            searches[name] = Search(budgets=each, penalties=(), space=space, **options)
        except ValueError as error:
            raise ValueError(f'--budgets {name!r}: {error}') from error
    return searches


def policies_within(
    searches: Mapping[str, Search],
    probs: Sequence[Tensor],
    loss_of: Callable[[], float] | None = None,
) -> list[tuple[str, Policy, float]]:
    """For each search the most probable policy inside its budgets.

    Args:
        searches: By name.
        probs: Probabilities of each group's candidates.
        loss_of: What upgrades are measured by, to spend what a policy leaves of its
            budgets; None leaves it. See :meth:`Search.choose`.

    Returns:
        (name, policy, score) of each; the score is Σ log p.
    """
    log_p = [p.double().cpu().clamp_min(1e-12).log() for p in probs]
    policies = []
    for name, search in searches.items():
        choice = search.choose(loss_of, probs=probs)
        score = sum(float(row[j]) for row, j in zip(log_p, choice, strict=True))
        policies.append((name, search.policy(choice), score))
    return policies
