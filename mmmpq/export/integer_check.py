"""Quantized layers computed again with integers, as integer hardware computes them."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.export.integers import activation_levels, weight_integers
from mmmpq.layers import MixedLayer, QuantLayer, first_input, quantized_layers
from mmmpq.policy import SKIP

INT32 = 32


@dataclass
class LayerCheck:
    """What one layer's integers gave, over all of its calls.

    Attributes:
        name (str): Of the layer in the model.
        w_bits, a_bits (int): Its precision.
        calls (int): Calls that were recomputed.
        deviation (float): Largest |integer output - fake-quantized output|.
        largest (float): Largest |fake-quantized output|.
        lowest, highest (int): Range of the accumulators that was seen.
        least, most (int): Range that no input whatever can leave.
    """

    name: str
    w_bits: int
    a_bits: int
    calls: int = 0
    deviation: float = 0.0
    largest: float = 0.0
    lowest: int = 0
    highest: int = 0
    least: int = 0
    most: int = 0

    @property
    def share(self) -> float:
        """The deviation as a share of the largest output."""
        return self.deviation / self.largest if self.largest else self.deviation

    @property
    def seen_bits(self) -> int:
        """Width of an accumulator that holds the range seen."""
        return accumulator_bits(self.lowest, self.highest)

    @property
    def bits(self) -> int:
        """Width of an accumulator that no input can make overflow."""
        return accumulator_bits(self.least, self.most)

    @property
    def overflows(self) -> bool:
        """Whether some input makes a 32-bit accumulator overflow."""
        return self.bits > INT32

    def as_dict(self) -> dict[str, Any]:
        more = ('share', 'seen_bits', 'bits', 'overflows')
        return {**asdict(self), **{name: getattr(self, name) for name in more}}


def accumulator_bits(lowest: int, highest: int) -> int:
    """Bits of a two's complement number that holds ``lowest`` to ``highest``.

    Examples:
        >>> accumulator_bits(-128, 127), accumulator_bits(0, 128)
        (8, 9)
    """
    return 1 + max(int(lowest < 0 and -lowest - 1).bit_length(), highest.bit_length())


class IntegerLayer:
    """A quantized layer as integers.

    With weights s_w (q_w - z_w) and inputs s_a (q_a - z_a), u = q - [z] and f = z - [z]
    for the integer [z] next to z, a layer without its bias is::

        s_w s_a (Σ u_w u_a - f_w Σ u_a - f_a Σ u_w + f_w f_a n)

    with sums over the n inputs of an output; what pads the input is no input. Each Σ is
    an accumulator; where the zero points are integers, only the first is needed.

    Args:
        layer: Of one precision, with at most 8 bits on both sides.
    """

    def __init__(self, layer: QuantLayer) -> None:
        self.layer = layer
        q, scale, zero = weight_integers(layer)
        scale, zero, fraction = _exact(q, scale, zero)
        self.weight = q.double() - zero  # u_w
        self.w_scale, self.w_fraction = _per_output(layer, scale, fraction)
        step, zero, self.qmin, self.qmax = activation_levels(layer)
        # The arithmetic of the layer's own quantizer, so that ties round alike.
        self.inverse = torch.as_tensor(step, dtype=torch.float32, device=q.device)
        self.inverse = self.inverse.reciprocal()
        self.offset = torch.as_tensor(
            0.0 if zero is None else zero, dtype=torch.float32, device=q.device
        )
        self.a_scale, self.a_zero, self.a_fraction = _exact(q, step, zero)

    def quantize(self, x: Tensor) -> Tensor:
        """u_a = q_a - [z_a] of an input, as float64 integers."""
        q = (x.float() * self.inverse + self.offset).clamp(self.qmin, self.qmax)
        return q.round().double() - self.a_zero

    def accumulators(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each sum of the formula with its factor, the first one first."""
        u = self.quantize(x)
        sums = [(self._sum(u, self.weight), torch.ones_like(self.a_scale))]
        ones = torch.ones_like(u)
        if self.w_fraction.any():
            sums.append((self._sum(u, torch.ones_like(self.weight)), -self.w_fraction))
        if self.a_fraction.any():
            sums.append((self._sum(ones, self.weight), -self.a_fraction))
            if self.w_fraction.any():
                count = self._sum(ones, torch.ones_like(self.weight))
                sums.append((count, self.w_fraction * self.a_fraction))
        return sums

    def rescale(self, sums: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The layer's output: one rescale, and the bias."""
        total = sum(acc * factor for acc, factor in sums)
        out = total * (self.w_scale * self.a_scale)
        if self.layer.bias is None:
            return out
        bias = self.layer.bias.detach().double()
        return out + _per_output(self.layer, bias)[0]

    def bound(self) -> tuple[int, int]:
        """Range that the accumulators cannot leave, whatever the input."""
        ends = [float(end - self.a_zero) for end in (self.qmin, self.qmax)]
        weights = [self.weight.flatten(1)]
        if self.w_fraction.any():
            weights.append(torch.ones_like(weights[0]))
        least, most = 0, 0
        for w in weights:  # 0: what pads the input
            terms = torch.stack([w * ends[0], w * ends[1], torch.zeros_like(w)])
            least = min(least, int(terms.amin(0).sum(1).min()))
            most = max(most, int(terms.amax(0).sum(1).max()))
        if self.a_fraction.any():
            least = min(least, int(weights[0].clamp(max=0).sum(1).min()))
            most = max(most, int(weights[0].clamp(min=0).sum(1).max()))
        return least, most

    def _sum(self, u: Tensor, weight: Tensor) -> Tensor:
        """Exact: float64 holds every integer below 2^53."""
        with torch.backends.cudnn.flags(enabled=False):  # it may transform the inputs
            return self.layer.compute(u, weight, None)


@contextlib.contextmanager
def checking(model: nn.Module) -> Iterator[dict[str, LayerCheck]]:
    """Within it, forwards of ``model`` are recomputed layer by layer with integers.

    Every layer gets the input that it has in the fake-quantized net, so deviations do
    not add up from layer to layer. Layers with float weights or inputs, those of
    skipped blocks, and those that are not ``affine``, are left out.

    Args:
        model: A quantized model of one precision per layer, in eval mode.

    Returns:
        dict: The checks by layer, filled by the forwards.

    Raises:
        ValueError: The model has candidates still, or layers that have no ranges.
    """
    layers = quantized_layers(model)
    mixed = [n for n, m in layers.items() if isinstance(m, MixedLayer)]
    if not layers or mixed:
        kind = f'candidates in {len(mixed)} layers' if mixed else 'a float model'
        raise ValueError(
            f'model: found {kind}; accepted is one precision per layer, as with '
            'model.quant.policy=policy.json'
        )
    layers = {n: m for n, m in layers.items() if m.affine and is_integer(m)}
    waiting = [
        n
        for n, m in layers.items()
        if not (m.w_quantizer.calibrated and m.a_quantizer.calibrated)
    ]
    if waiting:
        raise ValueError(
            f'checkpoint: it has no quantizer ranges for {len(waiting)} of '
            f'{len(layers)} layers, such as {", ".join(waiting[:3])}; accepted is that '
            'of a searched or fine-tuned net'
        )
    checks = {n: LayerCheck(n, *m.precision) for n, m in layers.items()}
    handles = []
    try:
        for name, layer in layers.items():
            integer = IntegerLayer(layer)
            checks[name].least, checks[name].most = integer.bound()
            hook = partial(_check, integer, checks[name])
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        yield checks
    finally:
        for handle in handles:
            handle.remove()


def is_integer(layer: QuantLayer) -> bool:
    """Whether both weights and inputs of a layer have integer levels."""
    return layer.precision != SKIP and 32 not in layer.precision


@torch.no_grad()
def _check(
    integer: IntegerLayer, check: LayerCheck, _, args: tuple, kwargs: dict, out: Tensor
) -> None:
    if not out.numel():
        return
    check.calls += 1
    if not out.isfinite().all():
        check.deviation = float('nan')  # max() keeps it
        return
    sums = integer.accumulators(first_input(args, kwargs))
    for acc, _factor in sums:
        check.lowest = min(check.lowest, int(acc.min()))
        check.highest = max(check.highest, int(acc.max()))
    reference = out.detach().double()
    deviation = (integer.rescale(sums) - reference).abs().max()
    check.deviation = max(check.deviation, float(deviation))
    check.largest = max(check.largest, float(reference.abs().max()))


def _exact(like: Tensor, scale: Any, zero: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, integer and fraction of the zero point in float64, which is exact."""
    scale, zero = (
        torch.as_tensor(value, device=like.device).detach().double()
        for value in (scale, 0.0 if zero is None else zero)
    )
    return scale, zero.round(), zero - zero.round()


def _per_output(layer: nn.Module, *values: Tensor) -> tuple[Tensor, ...]:
    """Numbers, or one per output channel, broadcastable against the layer's output."""
    space = getattr(layer, 'kernel_size', ())
    return tuple(
        v.reshape(()) if v.numel() == 1 else v.reshape(-1, *[1] * len(space))
        for v in values
    )
