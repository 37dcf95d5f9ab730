"""Hooks of MMEngine's Runner."""

from mmmpq import registry  # noqa: F401  before anything imports torchvision
from mmmpq.engine.hooks.calibration import CalibrationHook
from mmmpq.engine.hooks.distillation import DistillationHook
from mmmpq.engine.hooks.finite import FiniteLossHook
from mmmpq.engine.hooks.sandwich import SandwichHook
from mmmpq.engine.hooks.scale_clip import ScaleClipHook
from mmmpq.engine.hooks.search import SearchHook

__all__ = [
    'CalibrationHook',
    'DistillationHook',
    'FiniteLossHook',
    'SandwichHook',
    'ScaleClipHook',
    'SearchHook',
]
