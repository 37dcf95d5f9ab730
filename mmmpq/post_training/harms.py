"""What candidates harm after learned rounding: each layer alone, measured."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmpq.baselines.measurements import Measurements
from mmmpq.baselines.probe import input_errors
from mmmpq.baselines.sensitivity import output_distance
from mmmpq.layers import (
    MixedLayer,
    first_input,
    float_mode,
    open_checkpoints,
    quantized_part,
)
from mmmpq.models.task_loss import output_tensors, raw_outputs
from mmmpq.policy import SKIP
from mmmpq.post_training.reconstruction import grid_of, learns
from mmmpq.post_training.rounding import (
    PER_SAMPLE,
    bias_of,
    error_of,
    grouped,
    learn_rounding,
    refitted,
)
from mmmpq.post_training.rows import gram_of_call, hooked
from mmmpq.search.space import SearchSpace

REFERENCE = 4  # bits at which a layer is measured, or those nearest to it
RIDGE = PER_SAMPLE[2]  # of rounding, where no images are held out for it
SWEEPS = 2  # of learned rounding, which then is within some percent of four

Affine = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass
class _Alone:
    """One layer with its weights, or its inputs, quantized.

    Attributes:
        errors: By bits, the squared error of what is quantized.
        settled: By bits at which the net is measured, weight and bias that go with it.
    """

    errors: dict[int, float]
    settled: dict[int, Affine]

    def harms(self, distance: Callable[[int, Affine], float]) -> dict[int, float]:
        """By bits, from the distance at those that are measured: between these on a
        line of logarithms, beyond them in proportion to the errors."""
        known = sorted(
            (self.errors[bits], distance(bits, affine))
            for bits, affine in self.settled.items()
            if self.errors[bits] > 0
        )
        return {bits: _read(error, known) for bits, error in self.errors.items()}


def _read(error: float, known: Sequence[tuple[float, float]]) -> float:
    """The distance that goes with an error, of what is known of the same layer."""
    if not error or not known:
        return 0.0
    for (low, near), (high, far) in pairwise(known):
        if low < error < high and near > 0 and far > 0:
            share = math.log(error / low) / math.log(high / low)
            return near * (far / near) ** share
    unit, measured = known[-1] if error >= known[-1][0] else known[0]
    return measured * error / unit


@torch.no_grad()
def measure(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Any],
    cache: Measurements | None = None,
    step: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """What each candidate of each group harms once rounding is learned.

    Of each layer alone, all others float, it measures how far the net's outputs are
    from the float net's: with weights at 4 bits (or those nearest to it) and at the
    fewest, rounded as they will be and the bias corrected; and with inputs at 4 bits,
    where the weights make up for what they can. Other widths follow from the squared
    errors of the layer's outputs, which learned rounding leaves, and of its inputs. A
    layer takes three evaluations, whatever the number of its candidates, and Ω of a
    group is the sum over its layers, of weights and of inputs.

    How far an error of a layer reaches differs by an order of magnitude between layers
    with the same squared gradients, as its errors are not independent of each other:
    that :func:`mmmpq.baselines.fisher.measure` does not see.

    Args:
        model: A supernet with the weights of a float net, calibrated, whose outputs do
            not change their shapes.
        space: Its groups.
        batches: As of :func:`mmmpq.models.task_loss.raw_outputs`; rounding is learned
            on the first, and distances are of the others, if there are any.
        cache: Takes the values of each layer; those it holds are not measured again.
        step: Called with ``(done, total)`` layers.

    Returns:
        For each group Ω of every candidate (m,), float64, in units of
        :func:`mmmpq.baselines.sensitivity.output_distance`; 0 of what no batch reaches.

    Raises:
        ValueError: There is no batch, a value is not finite, or shapes change.
    """
    if not batches:
        raise ValueError('batches: found none; at least one is needed')
    cache = Measurements() if cache is None else cache
    modules = dict(quantized_part(model).named_modules())
    layers = {n: modules[n] for group in space.groups for n in group.layers}
    missing = {n: layer for n, layer in layers.items() if n not in cache}
    model.eval()
    with float_mode(model), open_checkpoints(recompute=False):
        found = _alone(model, missing, batches[0])
        apart = batches[1:] or batches
        base = [output_tensors(model, batch) for batch in apart if missing]

        def distance() -> float:
            pairs = zip(base, apart, strict=True)
            each = [output_distance(y, output_tensors(model, x)) for y, x in pairs]
            return sum(each) / len(each)

        for done, (name, layer) in enumerate(missing.items(), 1):
            harms = np.zeros(len(layer.candidates))
            if name in found:
                harms = _harms(layer, *found.pop(name), distance)
            if not np.isfinite(harms).all():
                raise ValueError(
                    f'harms: what the net gives with {name} quantized is not finite; '
                    'check the float checkpoint on these batches'
                )
            cache[name] = harms.tolist()
            if step is not None:
                step(len(layers) - len(missing) + done, len(layers))
    return [sum(np.array(cache[n]) for n in group.layers) for group in space.groups]


def _harms(
    layer: MixedLayer, weights: _Alone, inputs: _Alone, distance: Callable[[], float]
) -> np.ndarray:
    """Ω of each candidate (m,) of one layer."""

    def of_weights(_: int, affine: Affine) -> float:
        with _computing_with(layer, *affine):
            return distance()

    def of_inputs(bits: int, affine: Affine) -> float:
        def quantized(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return (layer.a_quantizer(first_input(args, kwargs), bits),), {}

        handle = layer.register_forward_pre_hook(quantized, with_kwargs=True)
        with hooked([handle]):
            return of_weights(bits, affine)

    by_weights, by_inputs = weights.harms(of_weights), inputs.harms(of_inputs)
    return np.array([by_weights[w] + by_inputs[a] for w, a in layer.candidates])


def _alone(
    model: nn.Module, layers: Mapping[str, MixedLayer], batch: Any
) -> dict[str, tuple[_Alone, _Alone]]:
    """Weights and inputs of every layer that one batch reaches, of its first call."""
    found: dict[str, tuple[_Alone, _Alone]] = {}

    def hook(name: str) -> Callable:
        def look(layer: MixedLayer, args: tuple, kwargs: dict) -> None:
            x = first_input(args, kwargs)
            if x.numel() and name not in found:
                found[name] = _of_weights(name, layer, x), _of_inputs(name, layer, x)

        return look

    handles = [
        layer.register_forward_pre_hook(hook(n), with_kwargs=True)
        for n, layer in layers.items()
    ]
    with hooked(handles):
        if layers:
            raw_outputs(model, batch)
    return found


def _of_weights(name: str, layer: MixedLayer, x: Tensor) -> _Alone:
    weight, bias = layer._latent_weight(), layer.bias
    w_bits = [w for w, _ in layer.candidates]
    measured = {_reference(w_bits), min(_few(w_bits), default=32)}
    gram = gram_of_call(layer, x, x, name) if learns(layer) else None
    alone = _Alone(dict.fromkeys(w_bits, 0.0), {})
    for bits in set(w_bits) - {32}:
        if bits == SKIP.w_bits:
            rounded = torch.zeros_like(weight)
        elif gram is None:
            rounded = layer.candidate_weight(w_bits.index(bits))
        else:
            grid = grid_of(layer, bits)
            rounded = learn_rounding(*grid, gram, RIDGE, SWEEPS)
        if gram is None:
            error = (rounded - weight).double().square()
        else:
            error = error_of(grouped(rounded, gram), gram)
        alone.errors[bits] = float(error.sum())
        if bits in measured:
            corrected = bias
            if gram is not None and bias is not None:
                corrected = bias_of(rounded, gram)
            alone.settled[bits] = rounded, corrected
    return alone


def _of_inputs(name: str, layer: MixedLayer, x: Tensor) -> _Alone:
    a_bits = [a for _, a in layer.candidates]
    errors = dict(zip(a_bits, input_errors(layer, [x]).tolist(), strict=True))
    alone = _Alone(errors, {})
    reference = _reference(a_bits)
    if reference != 32 and errors[reference] > 0:
        weight, bias = layer._latent_weight(), layer.bias
        if learns(layer):
            seen = layer.a_quantizer(x, reference)
            gram = gram_of_call(layer, x, seen, name)
            weight = refitted(weight, gram, RIDGE)
            bias = None if bias is None else bias_of(weight, gram)
        alone.settled[reference] = weight, bias
    return alone


def _few(bits: Sequence[int]) -> list[int]:
    """Those that quantize."""
    return [b for b in bits if b not in (SKIP.w_bits, 32)]


def _reference(bits: Sequence[int]) -> int:
    """The bits that a layer is measured at; 32 if it has none but float."""
    return min(_few(bits), key=lambda b: (abs(b - REFERENCE), b), default=32)


@contextmanager
def _computing_with(
    layer: MixedLayer, weight: Tensor, bias: Tensor | None
) -> Iterator[None]:
    """Within it a layer has another weight and bias; what shares them with it has
    not."""
    before = layer.bias
    layer._latent_weight = lambda: weight
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    try:
        yield
    finally:
        del layer._latent_weight
        layer.bias = before
