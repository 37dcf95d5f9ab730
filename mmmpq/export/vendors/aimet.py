"""AIMET's encodings, which QNN and QAIRT read as quantization overrides.

Of version 1.0.0: two lists, of parameters and of activations, whose entries name a
tensor of the ONNX file. Integers q run from 0 to 2^bw - 1, whatever the sign, and stand
for ``scale (q + offset)``; ``is_sym`` says that the offset is -2^(bw - 1), that is a
zero point 0 of signed integers; ``zero_point_shift`` is added to an offset that is no
integer. Source: AIMET 2.42.0, aimet_onnx/_encoding.py (AffineEncoding) and
aimet_onnx/quantsim.py (load_encodings_to_sim).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmmpq.export.integers import activation_levels, weight_integers, weight_levels
from mmmpq.export.onnx.levels import limits, store_levels
from mmmpq.export.vendors.graph import FloatGraph
from mmmpq.layers.base import QuantLayer
from mmmpq.policy import Precision, some_of
from mmmpq.quantizers.functional import uniform_levels

VERSION = '1.0.0'


def encodings(
    graph: FloatGraph, precisions: Mapping[str, Precision]
) -> tuple[str, list[str]]:
    """The text of the file, and what is to be known of it.

    A tensor has one encoding: where several layers read it, that of the most bits, and
    among these of the widest range.

    Args:
        graph: Its layers have ranges.
        precisions: Of each layer, as AIMET is to have it.
    """
    params, activations, others = [], [], []
    for name, layer in graph.layers.items():
        if precisions[name].w_bits != 32:
            scale, zero = (
                np.asarray(0.0 if t is None else t.cpu(), np.float64)
                for t in weight_integers(layer)[1:]
            )
            bits = precisions[name].w_bits
            entry = _entry(bits, *weight_levels(layer), scale, zero)
            params.append({'name': f'{name}.weight', **entry})
    for tensor, names in graph.readers.items():
        ranges = {
            name: _input(graph.layers[name], precisions[name].a_bits)
            for name in names
            if precisions[name].a_bits != 32
        }
        if not ranges:
            continue
        widest = max(ranges, key=lambda name: ranges[name][0])
        activations.append({'name': tensor, **ranges[widest][1]})
        others += [n for n in ranges if ranges[n][1] != ranges[widest][1]]
    text = json.dumps(
        {
            'version': VERSION,
            'activation_encodings': activations,
            'param_encodings': params,
        },
        indent=1,
    )
    notes = []
    if shifted := [each['name'] for each in params if not each['is_sym']]:
        notes = [
            f'{some_of(shifted)}: not symmetric around 0, as the HTP wants weights; '
            'AIMET simulates them'
        ]
    if others:
        losers = some_of(list(dict.fromkeys(others)))
        notes += [
            f"{losers} read a tensor whose encoding is another layer's, of a wider "
            'range: AIMET has one for a tensor'
        ]
    return text + '\n', notes


def _input(layer: QuantLayer, bits: int) -> tuple[tuple[int, float], dict[str, Any]]:
    """How wide the input's range is, and its encoding at so many bits."""
    scale, zero, low, high = activation_levels(layer)
    width = scale * (high - low)
    if bits != layer.precision.a_bits:  # more levels in the same range
        least = scale * (low - zero)
        low, high = uniform_levels(bits, low < 0)
        scale = width / (high - low)
        zero = round(low - least / scale)
    return (bits, width), _entry(bits, low, high, np.float64(scale), np.float64(zero))


def _entry(
    bits: int, low: int, high: int, scale: np.ndarray, zero: np.ndarray
) -> dict[str, Any]:
    at = store_levels(bits, low, high, zero)
    start, _ = limits(at.type)
    offset = np.broadcast_to(start - at.point - at.rest, scale.shape).ravel()
    entry = {
        'dtype': 'INT',
        'bw': bits,
        'is_sym': bool(start and np.all(offset == start)),
        'enc_type': 'PER_TENSOR' if scale.size == 1 else 'PER_CHANNEL',
        'scale': scale.ravel().tolist(),
        'offset': np.floor(offset).tolist(),
    }
    if np.any(offset % 1):
        entry['zero_point_shift'] = (offset % 1).tolist()
    return entry
