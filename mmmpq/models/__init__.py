"""Toolbox models with quantized layers."""

from mmmpq.models.backbones import *  # noqa: F403
from mmmpq.models.calibration import calibrate, recalibrate_batchnorm
from mmmpq.models.quant_model import QuantModel, apply_policy, quantize

__all__ = [
    'QuantModel',
    'apply_policy',
    'calibrate',
    'quantize',
    'recalibrate_batchnorm',
]
