"""What penalties on the cost have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmmpq.costs import CostAt
from mmmpq.losses.penalty import Penalty

# What every candidate of a search costs at a reference input.
Pricing = Callable[[CostAt], Any]


class ExpectedCost(Penalty):
    """A penalty on the expected cost of the searchable layers.

    It has a table of its own, from :meth:`bind`, and so needs no budget.

    Args:
        cost: ``dict(type='BOPs', input_shape=(3, 224, 224), proposals=1000)``; the last
            two may be left out, as in a budget.

    Attributes:
        table: What every candidate costs, from :meth:`bind` on.
    """

    def __init__(self, cost: Mapping) -> None:
        super().__init__()
        self.at = CostAt.build(cost, f'{type(self).__name__}.cost')
        self.table: Any = None

    def bind(self, pricing: Pricing) -> None:
        """Has the candidates priced, at the reference input."""
        self.table = pricing(self.at)

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """Σ_g Σ_j p_gj B_gj over the searchable layers, a float64 scalar.

        Raises:
            RuntimeError: :meth:`bind` was not called.
        """
        if self.table is None:
            raise RuntimeError(f'{type(self).__name__}: bind(pricing) comes first')
        return self.table.expected_searched(probs)


def checked(key: str, value: Any, positive: bool = False) -> float:
    """``value`` if it is a finite number >= 0, or > 0.

    Raises:
        ValueError: It is missing (None) or none; ``key`` is named.
    """
    accepted = f'accepted are numbers {">" if positive else ">="} 0'
    if value is None:
        raise ValueError(f'{key} is missing and has no default; {accepted}')
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf or (positive and value == 0):
        raise ValueError(f'{key}: found {value!r}; {accepted}')
    return float(value)
