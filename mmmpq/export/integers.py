"""The integers behind a layer's fake-quantized weights and activations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmmpq.layers.base import QuantLayer
from mmmpq.policy import SKIP, some_of
from mmmpq.quantizers import NO_RANGE, Quantizer


@torch.no_grad()
def weight_integers(layer: QuantLayer) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Integers q, scale s and zero point z of a layer's quantized weight.

    ``s * (q - z)``, computed in float32 and brought to the weight's dtype, equals what
    the layer multiplies with, value for value.

    Args:
        layer: Of one precision.

    Returns:
        None for a weight that stays float or belongs to a skipped block; else q, of
        the weight's shape, int8, or int16 where :func:`weight_levels` leave int8's
        range (8 bits from 0, or up to 128); the scale, float32, positive, of shape ()
        or (C_out, 1, ...); the zero point, of the scale's shape, a multiple of ½, or
        None for 0.

    Raises:
        ValueError: The quantizer is not calibrated, or its levels are not evenly
            spaced.
    """
    bits = layer.precision.w_bits
    if bits == 32 or layer.precision == SKIP:
        return None
    quantizer, weight = _calibrated(layer.w_quantizer), layer._latent_weight()
    quantized = quantizer(weight, bits)
    scales, offsets = quantizer.grids(weight, (bits,))
    scale = scales[0].float()
    zero = None if offsets is None or not offsets.any() else offsets[0].float()
    q = quantized.float() / scale
    q = (q if zero is None else q + zero).round_()
    if not torch.equal(from_integers(q, scale, zero, weight.dtype), quantized):
        raise ValueError(
            f'{type(quantizer).__name__}: its weights are not scale * (integer - zero '
            'point), as export needs; its scales() and offsets() say otherwise'
        )
    low, high = weight_levels(layer)
    dtype = torch.int8 if low >= -128 and high <= 127 else torch.int16
    return q.to(dtype).contiguous(), scale, zero


def from_integers(
    q: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """s * (q - z) with one float32 rounding of the product, then in ``dtype``."""
    q = q.float() if zero is None else q.float() - zero
    return (q * scale).to(dtype)


def weight_levels(layer: QuantLayer) -> tuple[int, int]:
    """(qmin, qmax) of a layer's quantized weight, below 32 bits."""
    return layer.w_quantizer.levels(layer.precision.w_bits)


def activation_levels(layer: QuantLayer) -> tuple[float, float, int, int] | None:
    """Scale s, zero point z, qmin and qmax of a layer's input, in evaluation mode.

    The layer computes s * (clip(round(x * (1 / s) + z), qmin, qmax) - z).

    Returns:
        None for an input that stays float or belongs to a skipped block.

    Raises:
        ValueError: The quantizer is not calibrated.
    """
    bits = layer.precision.a_bits
    if bits == 32 or layer.precision == SKIP:
        return None
    return levels_at(layer.a_quantizer, bits)


@torch.no_grad()
def levels_at(quantizer: Quantizer, bits: int) -> tuple[float, float, int, int]:
    """As :func:`activation_levels`, of a quantizer of activations at ``bits`` bits."""
    was_training, quantizer.training = quantizer.training, False
    like = torch.empty(0, device=_calibrated(quantizer).signed.device)
    scale, offset = quantizer.grids(like, (bits,))
    quantizer.training = was_training
    return (
        float(scale.reshape(())),
        0.0 if offset is None else float(offset.reshape(())),
        *quantizer.levels(bits),
    )


def check_calibrated(layers: Mapping[str, QuantLayer], inputs: bool = True) -> None:
    """Raises ValueError that names layers whose quantizers have no range yet.

    Args:
        layers: By name.
        inputs: Whether their inputs' quantizers are to have one as well.
    """
    names = [
        name
        for name, layer in layers.items()
        for kind, quantizer in (('w', layer.w_quantizer), ('a', layer.a_quantizer))
        if (inputs or kind == 'w')
        and getattr(layer.precision, f'{kind}_bits') not in (0, 32)
        and not quantizer.calibrated
    ]
    names = list(dict.fromkeys(names))
    if names:
        raise ValueError(f'not calibrated: {some_of(names)}: {NO_RANGE}')


def _calibrated(quantizer: Quantizer) -> Quantizer:
    if not quantizer.calibrated:
        raise ValueError(
            f'the {type(quantizer).__name__} of the {quantizer.target} is not '
            f'calibrated: {NO_RANGE}'
        )
    return quantizer
