"""Tensor to tensor at b bits. Knows no layer and no search."""

from mmmpq.quantizers.base import Quantizer
from mmmpq.quantizers.functional import fake_quantize, mix_fake_quantize
from mmmpq.quantizers.linear import LinearQuantizer
from mmmpq.quantizers.lsq import LSQQuantizer
from mmmpq.quantizers.ranges import least_squares_range, scale_clip_range

__all__ = [
    'LSQQuantizer',
    'LinearQuantizer',
    'Quantizer',
    'fake_quantize',
    'least_squares_range',
    'mix_fake_quantize',
    'scale_clip_range',
]
