"""The cheapest net whose measured drop stays inside a limit."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmmpq.baselines.choices import least_harm
from mmmpq.policy import near
from mmmpq.search.discretise import problem
from mmmpq.search.tables import Table

PATIENCE = 2  # cheaper nets that are outside, one after the other, before it ends


class Drop(NamedTuple):
    """How many points a net is below the float one.

    Attributes:
        points: Measured.
        half: Half of the 95 % interval.
    """

    points: float
    half: float

    @classmethod
    def between(
        cls,
        float_metrics: Mapping[str, float],
        metrics: Mapping[str, float],
        name: str,
        images: int,
    ) -> 'Drop':
        """From the float net's metrics to a net's; shares count as percent.

        Args:
            float_metrics, metrics: Measured on the same images.
            name: Of the metric; what no net finds has no mAP, which counts as 0.
            images: Count of them.
        """
        values = float_metrics[name], metrics.get(name, 0.0)
        points = 1.0 if max(values) > 1 else 100.0
        half = 100 * interval(*(v * points / 100 for v in values), images)
        return cls(points * (values[0] - values[1]), half)

    def statement(self, limit: float) -> str:
        """What can be said of it."""
        text = f'{self.points:.2f} ± {self.half:.2f} points'
        if limit < self.half:
            return f'{text}: {limit:g} is less than the test set can tell'
        if self.points + self.half <= limit:
            return f'{text}: below {limit:g} with 95 % certainty'
        return f'{text}: measured below {limit:g}, which it may exceed'


def metric_of(named: str | None, metrics: Mapping[str, float]) -> str:
    """The metric that drops are measured in; default: mIoU, where it was found, of what
    others give the first.

    Raises:
        ValueError: The evaluator does not give it.
    """
    named = named or ('mIoU' if 'mIoU' in metrics else next(iter(metrics), None))
    if named not in metrics:
        raise ValueError(
            f'--metric: the evaluator gives no {named!r}; '
            f'{near(str(named), list(metrics))}'
        )
    return named


def interval(float_share: float, share: float, images: int) -> float:
    """Half of the 95 % interval of the difference of two shares of ``images``, as if
    they were of different ones: of the same it is smaller.

    Of a mAP, which is none of images, it is a guide.
    """
    variances = [min(max(p, 0.0), 1.0) for p in (float_share, share)]
    total = sum(p * (1 - p) for p in variances)
    return 1.96 * math.sqrt(total / max(1, images))


def front(
    harms: Sequence[np.ndarray], tables: Sequence[Table], points: int
) -> list[list[int]]:
    """Choices of least harm, from the cheapest to the dearest inside all budgets.

    The bound of the first cost is lowered in even ratios, those of the others stay.

    Args:
        harms: As of :func:`mmmpq.baselines.choices.least_harm`.
        tables: Cost tables.
        points: At most so many.
    """
    first = tables[0]
    full = first.limit
    choices: list[list[int]] = []
    try:
        dearest = least_harm(harms, tables)
        costs, _ = problem(tables)
        spent = first.constant + costs[0].of(dearest)
        for share in np.linspace(0, 1, points)[:-1]:
            first.limit = first.min ** (1 - share) * spent**share
            try:
                choice = least_harm(harms, tables)
            except ValueError:  # the other budgets ask for more than that
                continue
            if choice not in choices:
                choices.append(choice)
    finally:
        first.limit = full
    return choices if dearest in choices else [*choices, dearest]


def cheapest_inside(
    count: int, drop: Callable[[int], float], limit: float
) -> int | None:
    """The first of ``count`` nets, cheapest first, whose drop is inside the limit.

    Drops fall, as a rule, as costs rise: halving finds a net whose next cheaper one is
    outside. Where drops rise and fall a still cheaper one may be inside: it goes on
    until two, one after the other, are not. Each net is measured once.

    Args:
        count: Of nets.
        drop: Measures the i-th.
        limit: In the unit of ``drop``.

    Returns:
        None if neither the dearest nor the next cheaper one is inside.
    """
    verdicts: dict[int, bool] = {}

    def inside(i: int) -> bool:
        if i not in verdicts:
            verdicts[i] = drop(i) <= limit
        return verdicts[i]

    low, best = -1, count
    if count and inside(count - 1):
        best = count - 1
    while best < count and best - low > 1:
        middle = (low + best) // 2
        low, best = (low, middle) if inside(middle) else (middle, best)
    outside, i = 0, best - 1
    while i >= 0 and outside < PATIENCE:
        outside = 0 if inside(i) else outside + 1
        best = i if inside(i) else best
        i -= 1
    return best if best < count else None
