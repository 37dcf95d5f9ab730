"""How many bytes a net takes: in theory, in the files that were written, as float."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmmpq.export.packed.file import read_packed
from mmmpq.layers import quantized_layers

KINDS = ('float', 'theory', 'packed', 'onnx')


def sizes(
    model: nn.Module,
    packed: str | Path | None = None,
    onnx: Mapping[str, Any] | None = None,
    rest: int | None = None,
) -> dict[str, Any]:
    """Bytes per layer and in total, of the kinds that are known.

    * ``float``: 4 bytes per weight, and the rest as it is in the model.
    * ``theory``: w_bits / 8 bytes per weight, and the rest as it is in the model.
    * ``packed``: of a packed checkpoint; with a layer go its scales and zero points.
    * ``onnx``: of an ONNX file, likewise.

    The rest are biases, BatchNorms and layers that stay float, and, in a file, the
    activations' ranges, names, policy, config, or graph.

    Args:
        model: Of fixed precision.
        packed: Its packed checkpoint.
        onnx: What :func:`mmmpq.export.onnx.graph.export_onnx` returned.
        rest: :func:`rest_bytes` of the net before its BatchNorms were folded.

    Returns:
        ``layers``, a list with ``name``, ``w_bits``, ``weights`` and the bytes of each
        kind; ``weights``, their sum; ``rest`` and ``total``. For JSON.
    """
    layers = [
        dict(
            name=name,
            w_bits=layer.precision.w_bits,
            weights=layer.weight.numel(),
            float=4 * layer.weight.numel(),
            theory=layer.precision.w_bits * layer.weight.numel() / 8,
        )
        for name, layer in quantized_layers(model).items()
        if layer.precision.w_bits != 32
    ]
    rest = rest_bytes(model) if rest is None else rest
    total = {
        kind: rest + sum(layer[kind] for layer in layers)
        for kind in ('float', 'theory')
    }
    if packed is not None:
        written = _packed_layers(packed)
        total['packed'] = Path(packed).stat().st_size
        for layer in layers:
            layer['packed'] = written.get(layer['name'], 0)
    if onnx is not None:
        total['onnx'] = onnx['bytes']
        for layer in layers:
            layer['onnx'] = onnx['layers'].get(layer['name'], {}).get('weight_bytes', 0)
    weights = {kind: sum(layer[kind] for layer in layers) for kind in total}
    rests = {kind: total[kind] - weights[kind] for kind in total}
    return dict(layers=layers, weights=weights, rest=rests, total=total)


def rest_bytes(model: nn.Module) -> int:
    """Bytes of a net's state without quantized weights and without quantizers."""
    layers = quantized_layers(model)
    tensors = {
        id(tensor): tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if '.w_quantizer.' not in name and '.a_quantizer.' not in name
    }
    for layer in layers.values():
        if layer.precision.w_bits != 32:
            tensors.pop(id(layer.weight), None)
    return sum(tensors.values())


def _packed_layers(path: str | Path) -> dict[str, int]:
    packed = read_packed(path)
    floats = packed.index['remainder']['float32']
    return {
        name: packed.tensors[f'{name}.weight'].numel()
        + sum(
            4 * math.prod(floats.get(f'{name}.w_quantizer.{key}', [0]))
            for key in ('scale', 'zero')
        )
        for name, entry in packed.index['weights'].items()
        if entry['bits']
    }
