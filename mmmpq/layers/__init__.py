"""Quantized layers: of one precision, and with all candidates of a search."""

from mmmpq.layers.base import (
    MixedLayer,
    QuantizedLayer,
    QuantLayer,
    calibrating,
    float_mode,
    quantized_layers,
)
from mmmpq.layers.conv import MixedConv2d, QuantConv2d
from mmmpq.layers.linear import MixedLinear, QuantLinear
from mmmpq.layers.relaxation import GumbelSoftmax, Softmax

__all__ = [
    'GumbelSoftmax',
    'MixedConv2d',
    'MixedLayer',
    'MixedLinear',
    'QuantConv2d',
    'QuantLayer',
    'QuantLinear',
    'QuantizedLayer',
    'Softmax',
    'calibrating',
    'float_mode',
    'quantized_layers',
]
