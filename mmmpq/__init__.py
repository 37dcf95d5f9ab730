"""Mixed-precision quantization search for MMDetection and MMPretrain."""

from mmmpq import compat, mmcv_finder, moved
from mmmpq.version import __version__

compat.require()
compat.warn_mixed()
compat.warn_untested()
mmcv_finder.install()
moved.install()
compat.register_safe_globals()
compat.warn_pkg_resources()

from mmmpq import costs, datasets, hooks, layers, losses, models, quantizers  # noqa: E402
from mmmpq.export.packed import load_packed  # noqa: E402
from mmmpq.policy import Policy, Precision  # noqa: E402

__all__ = [
    'Policy',
    'Precision',
    '__version__',
    'costs',
    'datasets',
    'hooks',
    'layers',
    'load_packed',
    'losses',
    'models',
    'quantizers',
]
