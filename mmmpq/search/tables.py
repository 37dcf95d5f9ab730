"""What every choice of a search costs, and is expected to cost."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmmpq.costs import Budget, CostAt, LayerProfile, total_cost
from mmmpq.costs.left_float import float_share
from mmmpq.layers import flat
from mmmpq.policy import FLOAT, Policy, Precision
from mmmpq.search.space import SearchSpace


class Table:
    """What each candidate of each group costs at a reference input.

    Args:
        space: The search space.
        at: The cost and its reference input; a :class:`mmmpq.costs.Budget` bounds it.
        profiles: The model's layers at that input.

    Attributes:
        values: For each group, the cost of every candidate (m,), float64.
        constant: Cost of fixed and float layers.
        searched: Profiles of the others.
        floats: Of the constant, that of layers which are not quantized at all.
        float_share: Their shares of the float net's ``bops`` and ``weights``.
        min, max: Cost of the cheapest and of the dearest choice.
        limit: Upper bound B_max in the cost's unit, of a budget.
    """

    def __init__(
        self, space: SearchSpace, at: CostAt, profiles: Sequence[LayerProfile]
    ) -> None:
        self.space, self.at = space, at
        self.name, self.cost, self.unit = at.name, at.cost, at.unit
        self.profiles = list(profiles)
        by_name = {p.name: p for p in self.profiles}
        self.values = [
            torch.tensor(
                [
                    sum(self.cost(by_name[n], c) for n in group.layers)
                    for c in group.candidates
                ],
                dtype=torch.float64,
            )
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
        self._flat: dict[torch.device, Tensor] = {}
        self.min = self.constant + sum(float(v.min()) for v in self.values)
        self.max = self.constant + sum(float(v.max()) for v in self.values)
        if isinstance(at, Budget):
            self.limit = at.resolve(self.uniform)

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
        """Σ_g Σ_j p_gj B_gj, a float64 scalar with gradient."""
        each = flat(probs).double()
        if each.device not in self._flat:
            self._flat[each.device] = torch.cat(self.values).to(each.device)
        return (each * self._flat[each.device]).sum()

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """E[B] = Σ_g Σ_j p_gj B_gj + constant, a float64 scalar with gradient."""
        return self.expected_searched(probs) + self.constant

    def of(self, policy: Policy) -> float:
        """Cost of a policy, layer by layer, independent of ``values``."""
        return total_cost(self.cost, self.profiles, policy.layers)


class Tables(tuple):
    """A :class:`Table` per budget, and what is expected under all of them.

    Args:
        tables: Of one search space.
    """

    def __new__(cls, tables: Iterable[Table] = ()) -> 'Tables':
        if isinstance(tables, cls):
            return tables
        new = super().__new__(cls, tables)
        new._devices = {}
        return new

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """E[B] = Σ_g Σ_j p_gj B_gj + constant: (budgets,), float64, with gradient."""
        return self.expected_of(flat(probs))

    def expected_of(self, probs: Tensor) -> Tensor:
        """E[B] of all groups' candidates: (..., N) -> (..., budgets)."""
        if not self:
            return probs.new_zeros((*probs.shape[:-1], 0), dtype=torch.float64)
        costs = self._on(probs.device)
        return probs.double() @ costs.values + costs.constants

    def of_logits(self, device: torch.device) -> Tensor:
        """:func:`per_logit` of the costs relative to their limits (budgets, L)."""
        return self._on(device).of_logits

    def _on(self, device: torch.device) -> '_OnDevice':
        if device not in self._devices:
            space = self[0].space
            of_logits = [
                per_logit(space, [v / t.limit for v in t.values]) for t in self
            ]
            costs = (
                torch.stack([torch.cat(t.values) for t in self], 1),
                torch.tensor([t.constant for t in self], dtype=torch.float64),
                torch.stack(of_logits),
            )
            self._devices[device] = _OnDevice(*(c.to(device) for c in costs))
        return self._devices[device]


class _OnDevice(NamedTuple):
    values: Tensor  # (N, budgets)
    constants: Tensor  # (budgets,)
    of_logits: Tensor  # (budgets, L)


def pricing(model: nn.Module, space: SearchSpace) -> Callable[[CostAt], Table]:
    """What prices the candidates; each distinct reference input is profiled once."""
    return lambda at: Table(space, at, space.profiles(model, at))


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
