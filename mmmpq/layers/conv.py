"""Quantized ``nn.Conv2d``, also for ``conv_cfg`` of the toolboxes' ConvModule."""

from torch import nn

from mmmpq.layers.base import QuantLayer
from mmmpq.layers.mixed import MixedLayer
from mmmpq.quantizers import recomputing
from mmmpq.registry import MODELS


class _Conv:
    def compute(self, x, weight, bias):
        with recomputing(x, weight):
            return self._conv_forward(x, weight, bias)


# ``init_cfg=dict(layer='Conv2d')`` looks at the name of a class and at those of its
# direct bases: nn.Conv2d must be one of them.
@MODELS.register_module()
class QuantConv2d(QuantLayer, _Conv, nn.Conv2d):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedConv2d(MixedLayer, _Conv, nn.Conv2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConv2d
