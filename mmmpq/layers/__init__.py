"""Quantized layers: of one precision, and with all candidates of a search."""

from mmmpq.layers.attention import open_attention
from mmmpq.layers.base import (
    LINEAR,
    Mode,
    QuantizedLayer,
    QuantLayer,
    calibrating,
    computing,
    float_mode,
    quantized_layers,
    quantizing,
)
from mmmpq.layers.batched_relaxation import BatchedRelaxation
from mmmpq.layers.by_weight import call_by_weight
from mmmpq.layers.checkpointing import open_checkpoints
from mmmpq.layers.conv import (
    MixedConv1d,
    MixedConv2d,
    MixedConv3d,
    MixedConvTranspose2d,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose2d,
)
from mmmpq.layers.handed import Handed
from mmmpq.layers.inputs import first_input, leaves
from mmmpq.layers.island import Island, Islands
from mmmpq.layers.kinds import PLAIN, float_twin, quantizable
from mmmpq.layers.linear import MixedLinear, QuantLinear
from mmmpq.layers.mixed import MixedLayer
from mmmpq.layers.mixing import Mixing
from mmmpq.layers.parts import quantized_part, quantized_parts
from mmmpq.layers.probs import Probs, flat, on_host, padded
from mmmpq.layers.relaxation import Relaxation
from mmmpq.layers.skip import Skip
from mmmpq.layers.softmax import GumbelSoftmax, Softmax
from mmmpq.layers.uniform import UniformSampling
from mmmpq.layers.weights_ahead import watch_passes

__all__ = [
    'LINEAR',
    'PLAIN',
    'BatchedRelaxation',
    'GumbelSoftmax',
    'Handed',
    'Island',
    'Islands',
    'MixedConv1d',
    'MixedConv2d',
    'MixedConv3d',
    'MixedConvTranspose2d',
    'MixedLayer',
    'MixedLinear',
    'Mixing',
    'Mode',
    'Probs',
    'QuantConv1d',
    'QuantConv2d',
    'QuantConv3d',
    'QuantConvTranspose2d',
    'QuantLayer',
    'QuantLinear',
    'QuantizedLayer',
    'Relaxation',
    'Skip',
    'Softmax',
    'UniformSampling',
    'calibrating',
    'call_by_weight',
    'computing',
    'first_input',
    'flat',
    'float_mode',
    'float_twin',
    'leaves',
    'on_host',
    'open_attention',
    'open_checkpoints',
    'padded',
    'quantizable',
    'quantized_layers',
    'quantized_part',
    'quantized_parts',
    'quantizing',
    'watch_passes',
]
