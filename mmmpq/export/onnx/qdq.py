"""Markers of an ONNX graph become pairs of QuantizeLinear and DequantizeLinear."""

import numpy as np
from onnx import ModelProto, TensorProto

from mmmpq.export.integers import activation_levels, weight_integers, weight_levels
from mmmpq.export.onnx.builder import LayerWriter
from mmmpq.export.onnx.levels import (
    containers_of,
    finer,
    needs_vnni,
    store_levels,
)
from mmmpq.export.onnx.target import Target
from mmmpq.layers.base import QuantLayer


def to_qdq(
    model: ModelProto,
    layers: dict[str, QuantLayer],
    containers: str = '8bit',
    vnni: bool = False,
    target: Target | None = None,
) -> dict[str, dict]:
    """Turns the markers of ``model`` into Q/DQ pairs, in place.

    A weight becomes integers behind one DequantizeLinear, however often its layer is
    called; each input of a layer becomes QuantizeLinear -> [Clip ->] DequantizeLinear,
    with Clip where the type has more levels than the true width. Of types of 8 bits it
    clips integers, which ONNX Runtime fuses, and they are unsigned, as the input and
    the output of what it fuses have to be alike; of 4 and of 16 bits, for which Clip is
    not there, it clips floats before QuantizeLinear. Where a zero point is
    no integer, as with DoReFa weights, its fraction is added before and taken away
    behind, see :class:`.onnx_levels.Stored`.

    Args:
        model: As :func:`.onnx_trace.trace` writes it.
        layers: The layers that its markers name.
        containers: 'auto' or '8bit', see :func:`.onnx_graph.export_onnx`.
        vnni: As there.
        target: Whose type of 8 bits inputs have, and where they are clipped; None
            stands for unsigned ones, clipped behind QuantizeLinear.

    Returns:
        By name, of each layer that the graph calls: the types 'weight' and 'input', of
        what is quantized, and 'weight_bytes', of integers, scales and zero points.

    Raises:
        ValueError: A layer's quantizer cannot be written as integers; it is named.
    """
    writer = _Writer(layers, containers, vnni, target)
    writer.convert(model)
    return writer.report


class _Writer(LayerWriter):
    """Pairs of QuantizeLinear and DequantizeLinear."""

    def __init__(
        self,
        layers: dict[str, QuantLayer],
        containers: str,
        vnni: bool,
        target: Target | None,
    ) -> None:
        super().__init__(layers)
        self.containers = containers
        # None: as the levels are
        self.signed = None
        if target is None or target.type != 'by sign':
            self.signed = target is not None and target.type == 'int8'
        self.clips_floats = target is not None and target.clip == 'float'
        self.vnni = vnni or (target is not None and target.signed_weights)

    def weight(self, name: str, latent: str) -> str:
        layer = self.layers[name]
        entry = self.report.setdefault(name, {})
        if layer.precision.w_bits == 32:
            entry['weight_bytes'] = 4 * layer.weight.numel()
            return latent
        q, scale, zero = (
            None if t is None else t.cpu().numpy() for t in weight_integers(layer)
        )
        bits, _ = containers_of(layer.precision, self.containers)
        unsigned = not self.vnni and needs_vnni(layer.precision)
        at = store_levels(
            bits,
            *weight_levels(layer),
            0 if zero is None else zero,
            signed=False if unsigned else None,
        )
        q = q.swapaxes(0, layer.out_dim)
        axis = {} if scale.size == 1 else {'axis': layer.out_dim}
        shape = scale.size if axis else ()
        fine = finer(at, layer.precision.a_bits) if bits == 8 else 1
        inputs = [
            self.integers(f'{name}.weight_{at.type}', fine * (q - at.shift), at.type),
            self.floats(f'{name}.weight_scale', (scale / fine).reshape(shape)),
        ]
        if at.point.any() or bits == 8:  # without it, matrix products are not fused
            point = fine * np.broadcast_to(at.point, scale.shape).reshape(shape)
            inputs.append(self.integers(f'{name}.weight_zero_point', point, at.type))
        added = [self.initializers[i] for i in inputs]
        new = self.node('DequantizeLinear', inputs, f'{name}.weight', **axis)
        if at.rest.any():
            rest = scale * at.rest
            rest = rest.swapaxes(0, layer.out_dim) if axis else rest
            rest = self.floats(f'{name}.weight_rest', rest)
            added.append(self.initializers[rest])
            new = self.node('Sub', [new, rest], f'{name}.weight')
        entry.update(weight=at.type, weight_bytes=sum(len(t.raw_data) for t in added))
        return new

    def input(self, name: str, x: str) -> str:
        layer = self.layers[name]
        scale, zero, low, high = activation_levels(layer)
        _, bits = containers_of(layer.precision, self.containers)
        four = bits == 4
        at = store_levels(bits, low, high, zero, signed=None if four else self.signed)
        self.report.setdefault(name, {})['input'] = at.type
        base = f'{name}.input'
        step = self.floats(f'{base}_scale', scale)
        if at.rest:
            rest = self.floats(f'{base}_rest', scale * at.rest)
            x = self.node('Add', [x, rest], base)
        # ONNX Runtime 1.31 fails to open a file with Clip or Relu before a zero point
        # of 4 bits. So zeros are left out, and others come behind Max and Min.
        points, kind = [], {}
        if four and not at.point:
            kind = {'output_dtype': TensorProto.DataType.Value(at.type.upper())}
        else:
            points = [self.integers(f'{base}_zero_point', at.point, at.type)]
        levels = ('min', at.low), ('max', at.high)
        before = bits != 8 or self.clips_floats
        if before and (at.clipped or (four and points)):
            ends = [
                self.floats(f'{base}_{end}', scale * (level - at.point))
                for end, level in levels
            ]
            if four and points:
                x = self.node('Max', [x, ends[0]], base)
                x = self.node('Min', [x, ends[1]], base)
            else:
                x = self.node('Clip', [x, *ends], base)
        x = self.node('QuantizeLinear', [x, step, *points], base, **kind)
        if at.clipped and not before:
            ends = [self.integers(f'{base}_{e}', q, at.type) for e, q in levels]
            x = self.node('Clip', [x, *ends], base)
        x = self.node('DequantizeLinear', [x, step, *points], base)
        if layer.precision.w_bits == 32 and not at.rest:
            # ONNX Runtime would quantize the float weight behind a DequantizeLinear.
            least = self.floats(f'{base}_least', scale * (at.low - at.point))
            x = self.node('Max', [x, least], base)
        return self.node('Sub', [x, rest], base) if at.rest else x
