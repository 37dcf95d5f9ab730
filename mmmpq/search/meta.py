"""What a policy was found for, as its file says."""

import contextlib
from collections.abc import Sequence
from typing import Any

from mmmpq.costs import BOPs, WeightBytes, total_cost
from mmmpq.policy import Policy, Precision
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table


def describe(
    policy: Policy, space: SearchSpace, tables: Sequence[Table], counted: Table
) -> dict[str, Any]:
    """Reference input, budgets and costs of a policy.

    Args:
        counted: Of the first budget, or else penalty: at its reference input BOPs and
            weight bytes are counted, of the float net, a uniform one and the policy's.
    """
    return dict(
        input_shape=_shape(counted.at.input_shape),
        proposals=counted.at.proposals,
        budgets=[
            dict(
                type=t.name,
                limit=t.limit,
                given=t.at.limit,
                unit=t.unit,
                cost=t.of(policy),
                fixed=t.constant,
                input_shape=_shape(t.at.input_shape),
                **t.at.cost.said,
            )
            for t in tables
        ],
        costs=_costs(policy, space, tables, counted),
        float_share=counted.float_share,
    )


def _costs(
    policy: Policy, space: SearchSpace, tables: Sequence[Table], counted: Table
) -> dict[str, dict[str, Any]]:
    def row(layers: dict[str, Precision], **more: Any) -> dict[str, Any]:
        return dict(
            more,
            bops=total_cost(BOPs(), counted.profiles, layers),
            weight_bytes=total_cost(WeightBytes(), counted.profiles, layers),
        )

    costs = dict(float=row({}), searched=row(policy.layers))
    limit = tables[0].at.limit if tables else None
    with contextlib.suppress(ValueError):  # an absolute budget has no uniform twin
        uniform = Precision.parse(limit['of'] if isinstance(limit, dict) else limit)
        costs['uniform'] = row(space.uniform(uniform).layers, name=str(uniform))
    return costs


def _shape(shape: Any) -> Any:
    return None if shape is None else list(shape)
