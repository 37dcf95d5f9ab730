"""Quantized convolutions, also for ``conv_cfg`` of the toolboxes' ConvModule."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmmpq.layers.base import QuantLayer
from mmmpq.layers.mixed import MixedLayer
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.quantizers import recomputing
from mmmpq.registry import MODELS


class _Conv:
    def compute(self, x, weight, bias):
        with recomputing(x, weight):
            return self._conv_forward(x, weight, bias)


class _Transposed:
    """Of one group: its weight is (C_in, C_out, ...), and quantized as (C_out, ...)."""

    out_dim = 1

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        if output_size is None:
            return super().forward(input)
        own, shape = self.output_padding, (self.stride, self.padding, self.kernel_size)
        self.output_padding = tuple(
            self._output_padding(input, output_size, *shape, 2, self.dilation)
        )
        try:
            return super().forward(input)
        finally:
            self.output_padding = own

    def compute(self, x, weight, bias):
        with recomputing(x, weight):
            return F.conv_transpose2d(
                x,
                outputs_first(weight, self.out_dim),
                bias,
                self.stride,
                self.padding,
                self.output_padding,
                self.groups,
                self.dilation,
            )


# ``init_cfg=dict(layer='Conv2d')`` looks at the name of a class and at those of its
# direct bases: nn.Conv2d must be one of them.
@MODELS.register_module()
class QuantConv2d(QuantLayer, _Conv, nn.Conv2d):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedConv2d(MixedLayer, _Conv, nn.Conv2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConv2d


@MODELS.register_module()
class QuantConvTranspose2d(_Transposed, QuantLayer, nn.ConvTranspose2d):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedConvTranspose2d(_Transposed, MixedLayer, nn.ConvTranspose2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConvTranspose2d


@MODELS.register_module()
class QuantConv1d(QuantLayer, _Conv, nn.Conv1d):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedConv1d(MixedLayer, _Conv, nn.Conv1d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConv1d


@MODELS.register_module()
class QuantConv3d(QuantLayer, _Conv, nn.Conv3d):
    __doc__ = QuantLayer.__doc__


@MODELS.register_module()
class MixedConv3d(MixedLayer, _Conv, nn.Conv3d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConv3d
