"""Mixed precision without training: from a float net and some batches to a net that
fits."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq.baselines import fisher
from mmmpq.baselines.choices import least_harm
from mmmpq.baselines.measurements import Measurements, fingerprint
from mmmpq.export.fold import FoldReport, fold_batchnorm
from mmmpq.layers import calibrating, quantized_layers
from mmmpq.models import apply_policy, quantize
from mmmpq.models.calibration import calibrate_blank
from mmmpq.models.task_loss import (
    are_logits,
    images_of,
    output_tensors,
    raw_outputs,
)
from mmmpq.policy import Policy
from mmmpq.post_training import harms
from mmmpq.post_training.equalisation import equalise
from mmmpq.post_training.norms import rematched
from mmmpq.post_training.reconstruction import ROUNDINGS, Kept, reconstruct
from mmmpq.randomness import isolated_randomness
from mmmpq.search import Problem

# More of them where few bits are. Five bits are left out: no runtime gains by them.
CANDIDATES = [(w, a) for w in (2, 3, 4, 6, 8) for a in (4, 6, 8)]
QUANT = dict(
    candidates=CANDIDATES,
    w_quantizer=dict(type='LinearQuantizer', per_channel=True),
    a_quantizer=dict(type='LSQPlusQuantizer'),
    groups='layer',
)
SCORED = 128  # images that ranges and scores are computed from
MEASURED = 64  # images that layers are measured on, half of them to learn from
SCORES = ('measured', 'fisher')
CORRECTED = 64  # images that biases are corrected on where nothing is learned
Step = Callable[[str, int, int], None]


@dataclass
class Result:
    """What :func:`ptq` found.

    Attributes:
        model: The quantized net, in evaluation mode.
        policy: Its policy, with what it was found for.
        folded: What became of its BatchNorms.
        equalised: Pairs of layers whose ranges were made level, by name.
        seconds: Of each step.
        learned: Of each layer whose rounding was learned, the error of its outputs as a
            share of what rounding to the nearest leaves.
    """

    model: nn.Module
    policy: Policy
    folded: FoldReport
    equalised: list[tuple[str, str]]
    seconds: dict[str, float] = field(default_factory=dict)
    learned: dict[str, float] = field(default_factory=dict)


def ptq(
    model: nn.Module,
    batches: Sequence[Any],
    budgets: str | Sequence[Any] = (),
    quant: Mapping[str, Any] | None = None,
    labels: bool | None = None,
    rounding: str = 'learned',
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    step: Step | None = None,
    equalised: bool = False,
    scores: str | None = None,
) -> Result:
    """Quantizes a trained net under budgets without training it, in minutes.

    BatchNorms are folded where that is exact; ranges calibrated; candidates scored by
    Fisher-weighted errors, and the policy chosen by MILP; rounding is learned and
    biases are corrected layer by layer; statistics of BatchNorms that stay are moved.

    Args:
        model: A float model of a toolbox, or any that takes a batch; changed in place.
        batches: Of a dataloader, not preprocessed, some hundred images; of a model that
            is no toolbox's, inputs.
        budgets: Such as 'W4A8' or ['W4A8', '12 MB']; configs of budgets.
        quant: As of :func:`mmmpq.quantize`, in place of the defaults here; with
            ``policy`` nothing is chosen.
        labels: Whether scores come from the task's loss, for which ``batches`` need
            labels; else from the distance of the outputs. Default: of toolbox models.
        rounding: 'learned', or 'nearest'.
        input_shape: (C, H, W) of the reference input; default: that of its kind.
        seed: Recorded with the policy.
        step: Called with what is done now, how much of it, and of how much.
        equalised: Whether ranges of consecutive layers are made level first
            (:func:`.equalisation.equalise`).
        scores: 'measured' (:func:`.harms.measure`), default of classifiers, or
            'fisher', default of others.

    Returns:
        Result.

    Raises:
        ValueError: No batch, no budget, one that cannot be met, or a wrong argument.

    Examples:
        >>> sizes = [(3, 8), (8, 8), (8, 8), (8, 4)]
        >>> net = nn.Sequential(*(nn.Conv2d(i, o, 3) for i, o in sizes))
        >>> images = [torch.randn(8, 3, 16, 16)]
        >>> found = ptq(net, images, 'W4A8', input_shape=(3, 16, 16))
        >>> found.policy.meta['budgets'][0]['given']
        'W4A8'
    """
    budgets = [budgets] if isinstance(budgets, str) else list(budgets)
    if not budgets and (quant or {}).get('policy') is None:
        raise ValueError("budgets: found none; accepted are such as 'W4A8' and '12 MB'")
    check_option('rounding', rounding, ROUNDINGS)
    clock = Clock()
    folded, pairs = prepare(model, batches, quant, input_shape, equalised)
    clock('prepare')
    if (quant or {}).get('policy') is None:
        problem = Problem(model, budgets, input_shape, seed)
        found = score(problem, batches, labels, step=step, scores=scores)
        policy = problem.policy(least_harm(found, problem.tables))
        apply_policy(model, policy)
        clock('choose')
    else:
        policy = policy_of(model)
    learned = settle(model, batches, rounding, step=step)
    clock('round')
    return Result(model, policy, folded, pairs, clock.seconds, learned)


@torch.no_grad()
def prepare(
    model: nn.Module,
    batches: Sequence[Any],
    quant: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    equalised: bool = False,
) -> tuple[FoldReport, list[tuple[str, str]]]:
    """Folds BatchNorms, levels ranges if ``equalised``, quantizes the layers and
    calibrates them, in place.

    Returns:
        What was folded, and the pairs that were levelled.
    """
    if not batches:
        raise ValueError('images: found none; some hundred of any kind are needed')
    folded = fold_batchnorm(model.eval(), input_shape)
    pairs = equalise(model, input_shape) if equalised else []
    quantize(model, **{**QUANT, **(quant or {})}).eval()
    calibrate_ranges(model, batches[: count_of(batches, SCORED)])
    calibrate_blank(model)
    return folded, pairs


@torch.no_grad()
def calibrate_ranges(model: nn.Module, batches: Sequence[Any]) -> None:
    """Fits ranges that are none yet to what layers see when the net evaluates.

    Labels are not needed, and neither dropout nor the statistics of a batch are in it.
    """
    with calibrating(model):
        for batch in batches:
            raw_outputs(model, batch)


def score(
    problem: Problem,
    batches: Sequence[Any],
    labels: bool | None = None,
    file: Path | None = None,
    step: Step | None = None,
    scores: str | None = None,
) -> list[np.ndarray]:
    """What each candidate of each group harms: :func:`.harms.measure`, or
    :func:`.fisher.measure`.

    Args:
        problem: Of a supernet that :func:`prepare` made.
        batches, labels, step, scores: As of :func:`ptq`.
        file: Where measurements are kept, so that they need not be made again.
    """
    model = problem.model
    if scores is None:
        logits = are_logits(output_tensors(model.eval(), batches[0]))
        scores = 'measured' if logits else 'fisher'
    check_option('scores', scores, SCORES)
    labels = isinstance(model, BaseModel) if labels is None else labels
    measured = scores == 'measured'
    batches = batches[: count_of(batches, MEASURED if measured else SCORED)]
    settings = dict(fingerprint(model, problem.space), scores=scores, seed=problem.seed)
    settings |= dict(batches=len(batches)) | ({} if measured else dict(labels=labels))
    cache = Measurements(file, settings)

    def report(done: int, total: int = len(batches)) -> None:
        if step is not None:
            step('scores', done, total)

    with isolated_randomness(problem.seed):
        if measured:
            return harms.measure(model, problem.space, batches, cache, report)
        return fisher.measure(model, problem.space, batches, cache, report, labels)


def settle(
    model: nn.Module,
    batches: Sequence[Any],
    rounding: str = 'learned',
    kept: Kept | None = None,
    step: Step | None = None,
) -> dict[str, float]:
    """Rounds weights and corrects biases and statistics, in place; what learning has
    left of each layer's error.

    Args:
        model: Of fixed precision, calibrated, with the float weights.
        batches, rounding, step: As of :func:`ptq`.
        kept: As of :func:`.reconstruction.reconstruct`.
    """
    check_option('rounding', rounding, ROUNDINGS)
    if rounding == 'nearest':
        batches = batches[: count_of(batches, CORRECTED)]

    def report(done: int, total: int, name: str) -> None:
        if step is not None:
            step(f'{rounding} rounding', done, total)

    model.eval()
    with rematched(model, batches[0]):
        return reconstruct(model, batches, rounding, kept, report)


def policy_of(model: nn.Module) -> Policy:
    """The policy of a net of fixed precision."""
    layers = {n: layer.precision for n, layer in quantized_layers(model).items()}
    return Policy(layers, dict(quant=model.quantized_with))


def count_of(batches: Sequence[Any], images: int) -> int:
    """How many of the batches have so many images, or all of them."""
    count = 0
    for i, batch in enumerate(batches):
        count += len(images_of(batch))
        if count >= images:
            return i + 1
    return len(batches)


def check_option(key: str, found: str, accepted: Sequence[str]) -> None:
    """Raises ValueError for an unknown one."""
    if found not in accepted:
        raise ValueError(f'{key}: found {found!r}; accepted are {", ".join(accepted)}')


class Clock:
    """Notes how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
