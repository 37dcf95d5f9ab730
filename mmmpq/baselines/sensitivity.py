"""How much a net suffers when one group alone is quantized, by measuring it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor

from mmmpq.baselines.measurements import Measurements
from mmmpq.models.task_loss import are_logits, mean_loss, output_tensors
from mmmpq.policy import FLOAT
from mmmpq.search.at_choice import at_choice
from mmmpq.search.space import SearchSpace

METRICS = ('loss', 'output')


def measure(
    model: BaseModel,
    space: SearchSpace,
    batches: Sequence[Any],
    metric: str = 'loss',
    cache: Measurements | None = None,
    step: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """What it costs in quality to have one group at one candidate, all others float.

    The model is in train mode, so that BatchNorm takes the statistics of the batch, as
    after a calibration, and is left as it was.

    * ``loss``: increase of the task loss over the float net's.
    * ``output``: distance of what ``mode='tensor'`` returns from the float net's. Of
      one (N, K) tensor, the logits of a classifier: KL(softmax(float) ‖ softmax), as
      in ZeroQ: A Novel Zero Shot Quantization Framework, 2020, arXiv 2001.00281. Of
      others, such as the maps of a detector's head: Σ ‖y - y_float‖² / ‖y_float‖².

    Args:
        model: A supernet with the weights of a float net, calibrated.
        space: Its groups.
        batches: Batches of a dataloader, not preprocessed.
        metric: One of the two above.
        cache: Takes each value as soon as it is known; what it holds is not measured.
        step: Called as ``step(done, total)`` after each measurement.

    Returns:
        For each group the value of every candidate (m,), float64.

    Raises:
        ValueError: An unknown metric, a value that is not finite, no batch, or outputs
            whose shapes depend on their values (two-stage detectors).
    """
    if metric not in METRICS:
        raise ValueError(f'metric: found {metric!r}; accepted are {", ".join(METRICS)}')
    if not batches:
        raise ValueError('batches: found none; at least one is needed')
    cache = Measurements() if cache is None else cache
    distance = (_LossIncrease if metric == 'loss' else _OutputDistance)(model, batches)
    nothing: list[int | None] = [None] * len(space.groups)
    values = [np.zeros(n) for n in space.sizes]
    total, done = sum(space.sizes), 0
    missing = any(_key(g, c) not in cache for g in space.groups for c in g.candidates)
    if missing:
        with at_choice(model, space, nothing):
            distance.start()
    for g, group in enumerate(space.groups):
        for j, candidate in enumerate(group.candidates):
            key = _key(group, candidate)
            if key not in cache:
                value = 0.0
                if candidate != FLOAT:
                    choice = [*nothing[:g], j, *nothing[g + 1 :]]
                    with at_choice(model, space, choice):
                        value = distance.value()
                if not math.isfinite(value):
                    raise ValueError(
                        f'sensitivity: the {metric} of {key} is {value}; check the '
                        'quantizer, its calibration and the float checkpoint'
                    )
                cache[key] = value
            values[g][j] = cache[key]
            done += 1
            if step is not None:
                step(done, total)
    return values


def _key(group, candidate) -> str:
    return f'{group.name} {candidate}'


class _LossIncrease:
    def __init__(self, model: BaseModel, batches: Sequence[Any]) -> None:
        self.model, self.batches = model, batches

    def start(self) -> None:
        self.base = mean_loss(self.model, self.batches)

    def value(self) -> float:
        return mean_loss(self.model, self.batches) - self.base


class _OutputDistance:
    def __init__(self, model: BaseModel, batches: Sequence[Any]) -> None:
        self.model, self.batches = model, batches

    def start(self) -> None:
        self.base = list(self._outputs())

    def value(self) -> float:
        pairs = zip(self.base, self._outputs(), strict=True)
        return sum(output_distance(a, b) for a, b in pairs) / len(self.base)

    @torch.no_grad()
    def _outputs(self) -> Iterator[list[Tensor]]:
        for batch in self.batches:
            yield output_tensors(self.model, batch, training=True)


def output_distance(base: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Distance of a net's outputs from the float net's, see :func:`measure`.

    Raises:
        ValueError: Their shapes differ.
    """
    shapes = [tuple(t.shape) for t in base], [tuple(t.shape) for t in other]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'the outputs change their shapes, from {shapes[0]} to {shapes[1]}, and '
            'have no distance; accepted are the metric "loss" (mmmpq baseline), and '
            '--scores fisher (mmmpq ptq)'
        )
    if are_logits(base):
        log_p = base[0].double().log_softmax(1)
        log_q = other[0].double().log_softmax(1)
        return float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    return sum(
        float((b.double() - a.double()).square().sum())
        / max(float(a.double().square().sum()), 1e-12)
        for a, b in zip(base, other, strict=True)
    )
