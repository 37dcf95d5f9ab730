"""Markers of an ONNX graph become Quant and BipolarQuant, the nodes of QONNX.

A Quant node computes, with the levels that width, sign and narrow range leave::

    s (round(clip(x / s + z, qmin, qmax)) - z)

BipolarQuant has the levels ±s. Source: QONNX: Representing Arbitrary-Precision
Quantized Neural Networks, 2022, arXiv 2206.07527.
"""

from itertools import product

import numpy as np
from onnx import ModelProto, helper

from mmmpq.export.integers import (
    activation_levels,
    from_integers,
    weight_integers,
    weight_levels,
)
from mmmpq.export.onnx.builder import LayerWriter
from mmmpq.layers.base import QuantLayer
from mmmpq.layers.quantized_weight import outputs_first

DOMAIN = 'qonnx.custom_op.general'


def to_qonnx(model: ModelProto, layers: dict[str, QuantLayer]) -> None:
    """Turns the markers of ``model`` into nodes of QONNX, in place.

    Weights stay float, on their levels, in front of their node; a shared layer has one.

    Args:
        model: As :func:`.trace.trace` writes it.
        layers: The layers that its markers name.

    Raises:
        ValueError: A quantizer has levels that no width of QONNX has; the layer is
            named.
    """
    _Writer(layers).convert(model)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def quant_levels(bits: int, low: int, high: int) -> tuple[bool, bool, int]:
    """Whether Quant's levels for low … high are signed and narrow, and their shift.

    Integers q of ours are q - shift of QONNX; of two ways, that without a shift.

    Raises:
        ValueError: There are other numbers of levels than 2^b and 2^b - 1.

    Examples:
        >>> quant_levels(4, -7, 7), quant_levels(4, 0, 15), quant_levels(2, -1, 2)
        ((True, True, 0), (False, False, 0), (True, False, 1))
    """
    ways = []
    for signed, narrow in product((low < 0, low >= 0), (False, True)):
        count = 2**bits - narrow
        start = -(2 ** (bits - 1)) + narrow if signed else 0
        if count == high - low + 1 and not (signed and bits == 1):
            ways.append((signed, narrow, low - start))
    if not ways:
        raise ValueError(
            f'{bits} bits with the levels {low} to {high}: QONNX has {2**bits} levels '
            f'at that width, or one less'
        )
    return min(ways, key=lambda each: each[2] != 0)


class _Writer(LayerWriter):
    def weight(self, name: str, latent: str) -> str:
        layer = self.layers[name]
        integers = weight_integers(layer)
        if integers is None:
            return latent
        q, scale, zero = (
            outputs_first(t, layer.out_dim if t is not None and t.dim() else 0)
            for t in integers
        )
        values = from_integers(q, scale, zero).cpu().numpy()
        scale = scale.cpu().numpy()
        zero = 0 if zero is None else zero.cpu().numpy()
        low, high = weight_levels(layer)
        x = self.floats(f'{name}.weight_on_levels', values)
        if high - low == 1 and np.all(zero == (low + high) / 2):
            step = self.floats(f'{name}.weight_scale', scale / 2)
            return self.node('BipolarQuant', [x, step], f'{name}.weight', domain=DOMAIN)
        bits = layer.precision.w_bits
        return self.quant(x, f'{name}.weight', scale, zero, bits, low, high)

    def input(self, name: str, x: str) -> str:
        layer = self.layers[name]
        levels = activation_levels(layer)
        return self.quant(
            x, f'{name}.input', *levels[:2], layer.precision.a_bits, *levels[2:]
        )

    def quant(
        self,
        x: str,
        base: str,
        scale: np.ndarray | float,
        zero: np.ndarray | float,
        bits: int,
        low: int,
        high: int,
    ) -> str:
        signed, narrow, shift = quant_levels(bits, low, high)
        point = np.subtract(zero, shift)
        # FINN takes one number alone, and no other than 0.
        point = np.broadcast_to(point, np.shape(scale)) if np.any(point) else 0
        inputs = [
            x,
            self.floats(f'{base}_scale', scale),
            self.floats(f'{base}_zero_point', point),
            self.floats(f'{base}_bits', bits),
        ]
        return self.node(
            'Quant',
            inputs,
            base,
            domain=DOMAIN,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode='ROUND',
        )
