"""The budgets of a search among subnets, resolved to numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from mmmpq.costs import BOPs, Budget, CostAt, WeightBytes
from mmmpq.costs.budget_text import budget_cfgs
from mmmpq.subnets.code import GeneCode
from mmmpq.subnets.costs import SubnetCosts
from mmmpq.subnets.space import Subnet, SubnetSpace


class SubnetBudgets:
    """Costs of subnets, the bounds on them, and which of them are to be small.

    Args:
        model: The supernet.
        space: Its subnets.
        budgets: Name -> budgets that are to hold at once.
        objectives: Costs that are to be small; default: those of all budgets.

    Attributes:
        costs: BOPs, weight bytes and all others that are named, of many subnets.
        limits: Name -> upper bound of each cost (k,), inf where there is none.
        minimise: Indices of the objectives.

    Raises:
        ValueError: A budget is below the smallest net; both numbers are named.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SubnetSpace,
        budgets: Mapping[str, Sequence[Budget]],
        objectives: Sequence[CostAt] = (),
    ) -> None:
        references = [*objectives, *(b for each in budgets.values() for b in each)]
        shape, proposals = references[0].input_shape, references[0].proposals
        always = [CostAt(cost(), shape, proposals) for cost in (BOPs, WeightBytes)]
        columns: dict[str, CostAt] = {}
        for at in [*always, *references]:
            columns.setdefault(_column(at), at)
        self.space, self.budgets = space, dict(budgets)
        self.names = list(columns)
        self.costs = SubnetCosts(model, space, list(columns.values()))
        self.code: GeneCode = self.costs.code
        self.limits: dict[str, np.ndarray] = {}
        for name, each in budgets.items():
            self.limits[name] = np.full(len(columns), np.inf)
            for budget in each:
                i = self.names.index(_column(budget))
                limit = self.costs.limit(budget, i)
                self.limits[name][i] = min(limit, self.limits[name][i])
        minimised = [_column(r) for r in (objectives or references)]
        self.minimise = [self.names.index(n) for n in dict.fromkeys(minimised)]

    @classmethod
    def parse(
        cls,
        model: nn.Module,
        space: SubnetSpace,
        texts: Sequence[str],
        kind: str,
        common: Mapping[str, Any],
        table: str | None = None,
        objectives: Sequence[str] = (),
    ) -> 'SubnetBudgets':
        """Budgets as a command line has them.

        Args:
            texts: See :data:`mmmpq.costs.budget_text.HELP`.
            kind: Cost of uniform budgets.
            common: ``input_shape`` and ``proposals`` of all.
            table: Latency table.
            objectives: Names of costs.
        """
        budgets = {name: budget_cfgs(name, kind, common, table) for name in texts}
        if 'Latency' in objectives and not table:
            raise ValueError('--objectives: Latency needs --table, a latency table')
        costs = [
            dict(common, type=name, **(dict(table=table) if name == 'Latency' else {}))
            for name in objectives
        ]
        return cls(
            model,
            space,
            {name: [*map(Budget.build, each)] for name, each in budgets.items()},
            [CostAt.build(c, '--objectives') for c in costs],
        )

    def unit(self, i: int) -> str:
        """The unit of the i-th cost."""
        return self.costs.counted[i].unit

    def describe(self, subnet: Subnet, names: Sequence[str]) -> dict:
        """What a policy's meta says of the budgets ``names`` and of costs."""
        costs = self.costs.of(subnet)
        entries = []
        for budget in (b for name in names for b in self.budgets[name]):
            i = self.names.index(_column(budget))
            entries.append(
                dict(
                    type=budget.name,
                    limit=self.costs.limit(budget, i),
                    given=budget.limit,
                    unit=self.unit(i),
                    cost=costs[i],
                    **budget.cost.said,
                )
            )
        float_net = [self.costs.in_float(i) for i in range(2)]
        rows = {'float': float_net, 'searched': costs[:2]}
        shape = self.costs.shape(subnet)
        return dict(
            input_shape=None if shape is None else list(shape),
            proposals=self.costs.counted[0].proposals,
            budgets=entries,
            costs={
                kind: dict(zip(('bops', 'weight_bytes'), row, strict=True))
                for kind, row in rows.items()
            },
        )


def _column(at: CostAt) -> str:
    """The name of a cost among others, of which one may be on another chip."""
    return ' '.join([at.name, *at.cost.said.values()])
