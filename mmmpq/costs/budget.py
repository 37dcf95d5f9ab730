"""An upper bound on one cost, as it is written in a config."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmmpq.costs.cost import Cost
from mmmpq.costs.cost_at import CostAt
from mmmpq.policy import Precision

_UNIFORM = re.compile(r'[Ww]\d+[Aa]\d+')


class Budget(CostAt):
    """An upper bound on a cost at a reference input.

    Args:
        cost: The cost that is bounded.
        limit: Absolute with a unit (``'30 GBOPs'``, ``'12 MB'``), the cost of a
            uniform precision (``'W4A4'``), or a share of it
            (``dict(of='W4A4', ratio=0.9)``).
        input_shape, proposals, where: As in :class:`mmmpq.costs.CostAt`.

    Raises:
        ValueError: One of them cannot be read; the message lists what is accepted.

    Examples:
        >>> Budget.build(dict(type='WeightBytes', limit='12 MB')).resolve(None)
        12000000.0
    """

    where = 'budget'
    keys = ('limit', 'input_shape', 'proposals')
    example = "dict(type='BOPs', limit='W4A4')"

    def __init__(
        self,
        cost: Cost,
        limit: Any,
        input_shape: Sequence[int] | None = None,
        proposals: int | None = None,
        where: str | None = None,
    ) -> None:
        super().__init__(cost, input_shape, proposals, where)
        self.limit = limit
        self._absolute, self._of, self._ratio = self._parse(limit)

    def resolve(self, uniform_cost: Callable[[Precision], float]) -> float:
        """The bound in :attr:`cost`'s unit.

        Args:
            uniform_cost: The model's cost when every layer that has a choice takes the
                given precision. Called for relative limits only.
        """
        if self._of is None:
            return self._absolute
        return self._ratio * float(uniform_cost(self._of))

    def check(self, bound: float, least: float, most: float, of: str) -> None:
        """Raises ValueError if the cheapest of what is chosen from is over the bound.

        Args:
            bound: Of :meth:`resolve`.
            least, most: Costs of the cheapest and of the dearest choice.
            of: What there is to choose from, in the plural.
        """
        if least > bound:
            raise ValueError(
                f'{self.where}.limit: {self.name} {self.limit!r} = {bound:.6g} '
                f'{self.unit} cannot be met: the {of} span [{least:.6g}, {most:.6g}] '
                f'{self.unit}'
            )

    def __repr__(self) -> str:
        return f'Budget({self.name}, {self.limit!r})'

    def _parse(self, limit: Any) -> tuple[float | None, Precision | None, float]:
        units = list(self.cost.units)
        accepted = (
            f'accepted are a number with one of the units {", ".join(units)} '
            f"('30 {units[:4][-1]}'), a uniform precision ('W4A4') or a share of it "
            "(dict(of='W4A4', ratio=0.9))"
        )
        where = f'{self.where}.limit'
        if limit is None:
            raise ValueError(f'{where} is missing; {accepted}')
        if isinstance(limit, Mapping):
            if set(limit) != {'of', 'ratio'}:
                raise ValueError(f'{where} has keys {sorted(limit)}; {accepted}')
            of = Precision.parse(limit['of'], f'{where}.of')
            return None, of, _ratio(limit['ratio'], where)
        if isinstance(limit, str) and _UNIFORM.fullmatch(limit.strip()):
            return None, Precision.parse(limit.strip(), where), 1.0
        if not isinstance(limit, str):
            hint = ' has no unit' if isinstance(limit, (int, float)) else ''
            raise ValueError(f'{where} {limit!r}{hint}; {accepted}')
        number, unit = re.fullmatch(
            r'\s*([-+]?[\d.]*(?:[eE][-+]?\d+)?)\s*(.*?)\s*', limit, re.DOTALL
        ).groups()
        if unit not in self.cost.units:
            found = f'the unknown unit {unit!r}' if unit else 'no unit'
            raise ValueError(f'{where} {limit!r} has {found}; {accepted}')
        try:
            value = float(number) * self.cost.units[unit]
        except ValueError:
            raise ValueError(f'{where} {limit!r} has no number; {accepted}') from None
        if not 0 < value < math.inf:
            raise ValueError(f'{where} {limit!r} is not a positive number; {accepted}')
        return value, None, 1.0


def _ratio(ratio: Any, where: str) -> float:
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not 0 < ratio < math.inf:
        raise ValueError(f'{where}.ratio is {ratio!r}; needed is a number > 0')
    return float(ratio)
