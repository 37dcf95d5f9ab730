"""Tensor to tensor at b bits. Knows no layer and no search."""

from mmmpq.quantizers import operators
from mmmpq.quantizers.base import NO_RANGE, Quantizer, per_subnet
from mmmpq.quantizers.batch_quant import BatchQuantizer
from mmmpq.quantizers.dorefa import DoReFaQuantizer, PACTQuantizer
from mmmpq.quantizers.functional import (
    fake_quantize,
    mix_fake_quantize,
    recomputing,
)
from mmmpq.quantizers.gaussian import GaussianQuantizer
from mmmpq.quantizers.kernels import native
from mmmpq.quantizers.linear import LinearQuantizer
from mmmpq.quantizers.lsq import LSQQuantizer
from mmmpq.quantizers.lsq_plus import LSQPlusQuantizer
from mmmpq.quantizers.ranges import least_squares_range, scale_clip_range
from mmmpq.quantizers.stored import StoredQuantizer

__all__ = [
    'NO_RANGE',
    'BatchQuantizer',
    'DoReFaQuantizer',
    'GaussianQuantizer',
    'LSQPlusQuantizer',
    'LSQQuantizer',
    'LinearQuantizer',
    'PACTQuantizer',
    'Quantizer',
    'StoredQuantizer',
    'fake_quantize',
    'least_squares_range',
    'mix_fake_quantize',
    'native',
    'operators',
    'per_subnet',
    'recomputing',
    'scale_clip_range',
]
