"""What a policy was found for, as its file says."""

import contextlib
from collections.abc import Sequence
from typing import Any

from mmmpq.costs import BOPs, WeightBytes, total_cost
from mmmpq.policy import Policy, Precision
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import CostTable, Prices


def describe(
    policy: Policy, space: SearchSpace, tables: Sequence[CostTable], prices: Prices
) -> dict[str, Any]:
    """Reference input, budgets and costs of a policy.

    Args:
        prices: Of the first budget, or else penalty: at its reference input BOPs and
            weight bytes are counted, of the float net, a uniform one and the policy's.
    """
    reference = prices.reference
    return dict(
        input_shape=_shape(reference.input_shape),
        proposals=reference.proposals,
        budgets=[
            dict(
                type=t.name,
                limit=t.limit,
                given=t.budget.limit,
                unit=t.budget.cost.unit,
                cost=t.of(policy),
                input_shape=_shape(t.budget.input_shape),
            )
            for t in tables
        ],
        costs=_costs(policy, space, tables, prices),
        float_share=prices.float_share,
    )


def _costs(
    policy: Policy, space: SearchSpace, tables: Sequence[CostTable], prices: Prices
) -> dict[str, dict[str, Any]]:
    def row(layers: dict[str, Precision], **more: Any) -> dict[str, Any]:
        return dict(
            more,
            bops=total_cost(BOPs(), prices.profiles, layers),
            weight_bytes=total_cost(WeightBytes(), prices.profiles, layers),
        )

    costs = dict(float=row({}), searched=row(policy.layers))
    limit = tables[0].budget.limit if tables else None
    with contextlib.suppress(ValueError):  # an absolute budget has no uniform twin
        uniform = Precision.parse(limit['of'] if isinstance(limit, dict) else limit)
        layers = {n: space.fixed.get(n, uniform) for n in space.order}
        costs['uniform'] = row(layers, name=str(uniform))
    return costs


def _shape(shape: Any) -> Any:
    return None if shape is None else list(shape)
