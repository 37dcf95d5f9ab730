"""Toolbox models with quantized layers."""

from mmmpq import registry  # noqa: F401  before anything imports torchvision
from mmmpq.models.backbones import *  # noqa: F403
from mmmpq.models.build import build_model
from mmmpq.models.calibration import calibrate, calibrate_subnet
from mmmpq.models.decay import exempt_ranges
from mmmpq.models.elastic import *  # noqa: F403
from mmmpq.models.policies import apply_policy
from mmmpq.models.quant_model import QuantModel, quantize
from mmmpq.models.standalone import standalone

__all__ = [
    'QuantModel',
    'apply_policy',
    'build_model',
    'calibrate',
    'calibrate_subnet',
    'exempt_ranges',
    'quantize',
    'standalone',
]
