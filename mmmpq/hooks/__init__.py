"""Hooks of MMEngine's Runner: the only code that knows it."""

from mmmpq import registry  # noqa: F401  before anything imports torchvision
from mmmpq.hooks.calibration_hook import CalibrationHook
from mmmpq.hooks.finite_hook import FiniteLossHook
from mmmpq.hooks.reshape_hook import ScaleClipHook
from mmmpq.hooks.sandwich_hook import SandwichHook
from mmmpq.hooks.search_hook import SearchHook

__all__ = [
    'CalibrationHook',
    'FiniteLossHook',
    'SandwichHook',
    'ScaleClipHook',
    'SearchHook',
]
