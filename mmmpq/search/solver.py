"""The discrete choice under budgets: a multiple-choice knapsack, solved by MILP."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, lil_array

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

    Scores and costs may be :class:`.terms.Terms` that have pairs. To the MILP each pair
    of groups is one more, whose candidates are pairs of theirs, linked to both
    (candidates that no pair tells apart count as one).

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
    linked = _Linked([len(s) for s in scores], [scores, *costs])
    sizes, starts = linked.sizes, linked.starts
    flat = linked.flat(scores)
    spread = max(map(np.ptp, np.split(flat, starts[1:])))
    flat = flat * (_SCORE / (spread or 1.0))
    open_ = np.ones(flat.size, bool)
    if allowed is not None:
        free = np.concatenate(allowed)
        open_[: free.size] = free
    constraints = [LinearConstraint(linked.one_each(), 1, 1), *linked.links()]
    budgets = []
    for cost, limit in zip(costs, limits, strict=True):
        cost = linked.flat(cost)
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
        with _silent():
            result = milp(
                -flat,
                integrality=linked.whole,
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
        choice, places = linked.choice(result.x)
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


@contextmanager
def _silent() -> Iterator[None]:
    """Within it nothing reaches the process's standard output: HiGHS 1.12, which SciPy
    1.17 has, writes a line of its debugging there whatever its options
    (github.com/ERGO-Code/HiGHS/issues/2783)."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, 'wb') as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class _Linked:
    """Groups, and behind them a group for every pair of them that has terms.

    Args:
        sizes: Of the groups.
        terms: All that is added up over them.
    """

    def __init__(self, sizes: Sequence[int], terms: Sequence[Sequence]) -> None:
        with_pairs = [t.pairs for t in terms if getattr(t, 'pairs', None)]
        keys = sorted({key for pairs in with_pairs for key in pairs})
        self.groups = len(sizes)
        self.pairs = {}
        for g, h in keys:
            shape = sizes[g], sizes[h]
            each = [pairs.get((g, h), np.zeros(shape)) for pairs in with_pairs]
            self.pairs[g, h] = (
                _Classes(np.concatenate(each, 1)),
                _Classes(np.concatenate([t.T for t in each], 1)),
            )
        self.sizes = [*sizes, *(a.count * b.count for a, b in self.pairs.values())]
        self.starts = np.cumsum([0, *self.sizes[:-1]])
        # What the groups take says what the pairs take.
        self.whole = np.arange(sum(self.sizes)) < sum(sizes)

    def flat(self, terms: Sequence) -> np.ndarray:
        """What all candidates, and all pairs of classes, add (N,)."""
        parts = [np.asarray(v, float) for v in terms]
        own = getattr(terms, 'pairs', {})
        for key, (rows, columns) in self.pairs.items():
            shape = rows.count * columns.count
            pair = own[key][np.ix_(rows.first, columns.first)] if key in own else None
            parts.append(np.zeros(shape) if pair is None else pair.ravel())
        return np.concatenate(parts)

    def one_each(self) -> csr_array:
        return block_diag([np.ones((1, m)) for m in self.sizes], format='csr')

    def links(self) -> list[LinearConstraint]:
        """Of each pair, what is taken of a class is what its group takes of it."""
        total = sum(self.sizes)
        constraints = []
        for p, ((g, h), (rows, columns)) in enumerate(self.pairs.items()):
            at = self.starts[self.groups + p]
            grid = at + np.arange(rows.count * columns.count)
            grid = grid.reshape(rows.count, columns.count)
            for group, classes, lines in ((g, rows, grid), (h, columns, grid.T)):
                links = lil_array((classes.count, total))
                for c, line in enumerate(lines):
                    links[c, line] = 1
                for j, c in enumerate(classes.of):
                    links[c, self.starts[group] + j] = -1
                constraints.append(LinearConstraint(links.tocsr(), 0, 0))
        return constraints

    def choice(self, x: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The candidates of a solution, and the places of all that is taken with it."""
        parts = np.split(x, self.starts[1:])[: self.groups]
        choice = [int(part.argmax()) for part in parts]
        taken = [
            int(rows.of[choice[g]] * columns.count + columns.of[choice[h]])
            for (g, h), (rows, columns) in self.pairs.items()
        ]
        return choice, self.starts + [*choice, *taken]


class _Classes:
    """Rows (m, n) that are the same: ``of`` each its class, of each class the
    ``first``."""

    def __init__(self, rows: np.ndarray) -> None:
        _, self.first, self.of = np.unique(
            rows, axis=0, return_index=True, return_inverse=True
        )
        self.of = self.of.reshape(-1)
        self.count = len(self.first)


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
