"""Quantized ``nn.Linear``."""

from torch import nn
from torch.nn import functional as F

from mmmpq.layers.base import QuantLayer
from mmmpq.layers.mixed import MixedLayer
from mmmpq.quantizers import recomputing
from mmmpq.registry import MODELS


class _Linear:
    def compute(self, x, weight, bias):
        with recomputing(x, weight):
            return F.linear(x, weight, bias)


# nn.Linear is a direct base for the sake of ``init_cfg``, as in conv.py.
@MODELS.register_module()
class QuantLinear(QuantLayer, _Linear, nn.Linear):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedLinear(MixedLayer, _Linear, nn.Linear):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantLinear
