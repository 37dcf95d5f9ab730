"""Mixed-precision quantization for MMDetection, MMPretrain and MMSegmentation.

The import is light: rooms and names below are imported when they are asked for, and
registries find their own parts.
"""

import sys
from importlib import import_module
from typing import Any

from mmmpq import compat, mmcv_finder, moved
from mmmpq.version import __version__

ROOMS = (
    *('baselines', 'cli', 'costs', 'datasets', 'engine', 'export', 'layers', 'losses'),
    *('models', 'post_training', 'quantizers', 'search', 'subnets', 'visualization'),
)
NAMES = {
    'Policy': 'mmmpq.policy',
    'Precision': 'mmmpq.policy',
    'Search': 'mmmpq.search',
    'apply_policy': 'mmmpq.models',
    'calibrate': 'mmmpq.models',
    'cost': 'mmmpq.costs.bill',
    'exempt_ranges': 'mmmpq.models',
    'load_packed': 'mmmpq.export.packed',
    'ptq': 'mmmpq.post_training',
    'quantize': 'mmmpq.models',
    'save_packed': 'mmmpq.export.packed',
}
__all__ = ['__version__', *NAMES, *ROOMS]

compat.require()
compat.warn_mixed()
compat.warn_untested()
mmcv_finder.install()
moved.install()
if 'mmengine' in sys.modules:  # a toolbox runs, and may load a checkpoint next
    compat.prepare()


def __getattr__(name: str) -> Any:
    room = name in ROOMS or f'mmmpq.{name}' in moved.MODULES
    if room or name in NAMES:
        compat.prepare()
    if room:
        return import_module(f'mmmpq.{name}')
    if name in NAMES:
        return getattr(import_module(NAMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
