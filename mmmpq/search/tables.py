"""What every choice of a search costs, and is expected to cost."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmmpq.costs import Budget, CostAt, LayerProfile, total_cost
from mmmpq.costs.feeds import Feed
from mmmpq.costs.left_float import float_share
from mmmpq.layers import flat
from mmmpq.policy import FLOAT, Policy, Precision
from mmmpq.search.solver import solve
from mmmpq.search.space import SearchSpace
from mmmpq.search.terms import Options, Terms, pair_costs


class Table:
    """What each candidate of each group costs at a reference input.

    Args:
        space: The search space.
        at: The cost and its reference input; a :class:`mmmpq.costs.Budget` bounds it.
        profiles: The model's layers at that input.
        feeds: What they hand on, of a cost that is pairwise.

    Attributes:
        values: For each group, the cost of every candidate (m,), float64.
        terms: The same in NumPy, with what candidates of two groups cost together.
        steering: ``values``, or with such pairs the costs of the candidates beside the
            cheapest choice of all others: along these logits are led into a budget.
        constant: Cost of fixed and float layers.
        searched: Profiles of the others.
        floats: Of the constant, that of layers which are not quantized at all.
        float_share: Their shares of the float net's ``bops`` and ``weights``.
        min, max: Cost of the cheapest and of the dearest choice.
        limit: Upper bound B_max in the cost's unit, of a budget.
    """

    def __init__(
        self,
        space: SearchSpace,
        at: CostAt,
        profiles: Sequence[LayerProfile],
        feeds: Sequence[Feed] = (),
    ) -> None:
        self.space, self.at = space, at
        self.name, self.cost, self.unit = at.name, at.cost, at.unit
        self.profiles, self.feeds = list(profiles), list(feeds)
        by_name = {p.name: p for p in self.profiles}
        values = [
            [
                sum(self.cost(by_name[n], c) for n in group.layers)
                for c in group.candidates
            ]
            for group in space.groups
        ]
        searched = {n for group in space.groups for n in group.layers}
        self.searched = [p for p in self.profiles if p.name in searched]
        self.constant = sum(
            self.cost(p, space.fixed.get(p.name, FLOAT))
            for p in self.profiles
            if p.name not in searched
        )
        floats = [p for p in self.profiles if p.name not in {*searched, *space.fixed}]
        self.floats = sum(self.cost(p, FLOAT) for p in floats)
        self.float_share = float_share(self.profiles, {*searched, *space.fixed})
        self.terms = self._with_pairs(values)
        self.values = [torch.from_numpy(v) for v in self.terms]
        self.steering = self.values
        if self.terms.pairs:
            cheapest = solve(self.terms.scaled(-1), [], [])
            dearest = solve(self.terms, [], [])
            self.steering = self._steering(cheapest)
        else:
            cheapest = [int(v.argmin()) for v in self.terms]
            dearest = [int(v.argmax()) for v in self.terms]
        self.min = self.constant + self.terms.of(cheapest)
        self.max = self.constant + self.terms.of(dearest)
        self._tables: Tables | None = None
        if isinstance(at, Budget):
            self.limit = at.resolve(self.uniform)

    def _with_pairs(self, values: list[list[float]]) -> Terms:
        """The terms; what pairs cost with or inside fixed layers is added to theirs."""
        options: Options = {p.name: (None, (FLOAT,)) for p in self.profiles}
        options |= {n: (None, (p,)) for n, p in self.space.fixed.items()}
        for g, group in enumerate(self.space.groups):
            options |= dict.fromkeys(group.layers, (g, group.candidates))
        pairs, single, constant = pair_costs(
            self.cost, self.feeds, self.profiles, options
        )
        self.constant += constant
        return Terms(
            [single.get(g, 0) + np.array(v) for g, v in enumerate(values)], pairs
        )

    def _steering(self, cheapest: Sequence[int]) -> list[Tensor]:
        """No other candidate is as cheap there, so that the way leads to that choice.

        Where they are small or below 0 all are shifted up, which no difference between
        candidates sees: they are also taken relative to their mean.
        """
        beside = [self.terms.beside(cheapest, g) for g in range(len(self.terms))]
        unit = max(map(np.ptp, beside))
        for costs, j in zip(beside, cheapest, strict=True):
            if costs.min() < unit:
                costs += unit - costs.min()
            costs += 1e-6 * unit * (np.arange(len(costs)) != j)
        return [torch.from_numpy(costs) for costs in beside]

    def check(self) -> None:
        """Raises ValueError if no choice of candidates can meet the budget, or for
        searched layers that are never called."""
        idle = [p.name for p in self.searched if not p.calls]
        if idle:
            raise ValueError(
                f'quant: no forward at the reference input of {self.name} calls '
                f'{", ".join(idle)}, so that nothing can be chosen for them; '
                f'quant.exclude={idle} leaves them float'
            )
        self.at.check(self.limit, self.min, self.max, 'candidates')

    def uniform(self, precision: Precision) -> float:
        """Cost of :meth:`SearchSpace.uniform`."""
        return self.of(self.space.uniform(precision))

    def expected_searched(self, probs: Sequence[Tensor]) -> Tensor:
        """Σ_g Σ_j p_gj B_gj, and of pairs Σ_gh Σ_ij p_gi p_hj B_gihj: a float64 scalar
        with gradient."""
        self._tables = self._tables or Tables([self])
        return self._tables.searched(flat(probs))[0]

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """E[B], the same and the constant: a float64 scalar with gradient."""
        return self.expected_searched(probs) + self.constant

    def of(self, policy: Policy) -> float:
        """Cost of a policy, layer by layer, independent of ``values``."""
        return total_cost(self.cost, self.profiles, policy.layers, self.feeds)


class Tables(tuple):
    """A :class:`Table` per budget, and what is expected under all of them.

    Args:
        tables: Of one search space.
    """

    def __new__(cls, tables: Iterable[Table] = ()) -> 'Tables':
        if isinstance(tables, cls):
            return tables
        new = super().__new__(cls, tables)
        new._devices, new._of_logits = {}, {}
        return new

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """E[B] of :meth:`Table.expected`: (budgets,), float64, with gradient."""
        return self.expected_of(flat(probs))

    def expected_of(self, probs: Tensor) -> Tensor:
        """E[B] of all groups' candidates: (..., N) -> (..., budgets)."""
        if not self:
            return probs.new_zeros((*probs.shape[:-1], 0), dtype=torch.float64)
        return self.searched(probs) + self._on(probs.device).constants

    def searched(self, probs: Tensor) -> Tensor:
        """The same without the constants, of one table or more."""
        costs, probs = self._on(probs.device), probs.double()
        expected = probs @ costs.values
        if costs.first.numel():
            both = probs[..., costs.first] * probs[..., costs.second]
            expected = expected + both @ costs.together
        return expected

    def of_logits(self, device: torch.device) -> Tensor:
        """:func:`per_logit` of the costs relative to their limits (budgets, L)."""
        if device not in self._of_logits:
            space = self[0].space
            each = [per_logit(space, [v / t.limit for v in t.steering]) for t in self]
            self._of_logits[device] = torch.stack(each).to(device)
        return self._of_logits[device]

    def _on(self, device: torch.device) -> '_OnDevice':
        if device not in self._devices:
            costs = (
                torch.stack([torch.cat(t.values) for t in self], 1),
                torch.tensor([t.constant for t in self], dtype=torch.float64),
                *self._together(),
            )
            self._devices[device] = _OnDevice(*(c.to(device) for c in costs))
        return self._devices[device]

    def _together(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places (P,), (P,) of two candidates, and what they cost together."""
        starts = np.cumsum([0, *self[0].space.sizes])
        first, second, together = [], [], []
        for b, table in enumerate(self):
            for (g, h), costs in table.terms.pairs.items():
                rows, columns = np.nonzero(costs)
                first += (starts[g] + rows).tolist()
                second += (starts[h] + columns).tolist()
                each = np.zeros((len(rows), len(self)))
                each[:, b] = costs[rows, columns]
                together.append(torch.from_numpy(each))
        none = torch.zeros(0, len(self), dtype=torch.float64)
        places = (torch.tensor(p, dtype=torch.long) for p in (first, second))
        return *places, torch.cat([none, *together])


class _OnDevice(NamedTuple):
    values: Tensor  # (N, budgets)
    constants: Tensor  # (budgets,)
    first: Tensor  # (P,) places among N
    second: Tensor  # (P,)
    together: Tensor  # (P, budgets)


def pricing(model: nn.Module, space: SearchSpace) -> Callable[[CostAt], Table]:
    """What prices the candidates; each distinct reference input is profiled once."""
    return lambda at: Table(
        space, at, space.profiles(model, at), space.feeds(model, at)
    )


def cost_tables(
    model: nn.Module, space: SearchSpace, budgets: Iterable[Budget]
) -> Tables:
    """One table per budget."""
    return Tables(map(pricing(model, space), budgets))


def per_logit(space: SearchSpace, values: Sequence[Tensor]) -> Tensor:
    """Costs of the candidates of each group as costs of all logits (L,): what each
    relaxation has for a tilt."""
    return torch.cat(
        [
            group.relaxation.tilt(v.to(group.relaxation.logits.dtype))
            for group, v in zip(space.groups, values, strict=True)
        ]
    )
