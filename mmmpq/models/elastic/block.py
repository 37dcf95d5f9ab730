"""The inverted residual block with elastic kernel and expansion."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmpretrain.models.utils import InvertedResidual, make_divisible

from mmmpq.models.elastic.batchnorm import ElasticBatchNorm2d
from mmmpq.models.elastic.conv import ElasticConv2d

SE_ACTS = (
    dict(type='ReLU'),
    dict(type='HSigmoid', bias=3, divisor=6, min_value=0, max_value=1),
)


def middle_channels(in_channels: int, expand: float) -> int:
    """Channels of the depthwise convolution, a multiple of 8."""
    return make_divisible(round(in_channels * expand), 8)


def squeeze_channels(channels: int) -> int:
    """Channels between the two layers of squeeze-excite, a quarter of its own."""
    return make_divisible(channels // 4, 8)


def se_cfg(with_se: bool, channels: int, **kwargs: Any) -> dict | None:
    """Squeeze-excite of ``channels`` channels as in MobileNetV3, or None."""
    if not with_se:
        return None
    squeeze = squeeze_channels(channels)
    return dict(channels=channels, squeeze_channels=squeeze, act_cfg=SE_ACTS, **kwargs)


class ElasticInvertedResidual(InvertedResidual):
    """mmpretrain's block of which kernel size and middle channels are chosen.

    Args:
        in_channels, out_channels: Of the block.
        kernels: Sizes that the depthwise kernel may take, smallest first.
        expands: Ratios of middle channels to ``in_channels``, smallest first.
        stride: Of the depthwise convolution.
        with_se: Whether it has squeeze-excite.
        norm_cfg: Config of a BatchNorm.
        act_cfg: Config of the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: Sequence[int],
        expands: Sequence[float],
        stride: int,
        with_se: bool,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        middle = middle_channels(in_channels, expands[-1])
        conv_cfg = dict(type=ElasticConv2d, kernels=tuple(kernels))
        super().__init__(
            in_channels,
            out_channels,
            middle,
            kernels[-1],
            stride,
            se_cfg(with_se, middle, conv_cfg=conv_cfg),
            conv_cfg,
            dict(norm_cfg, type=ElasticBatchNorm2d),
            act_cfg,
        )

    def resize(self, kernel: int, expand: float) -> None:
        """Puts a kernel size and the first middle channels to use.

        Raises:
            ValueError: The norms were replaced by others, as ``sync_bn`` does.
        """
        norm = self.expand_conv.norm
        if not isinstance(norm, ElasticBatchNorm2d):
            raise ValueError(
                f'sync_bn: found {type(norm).__name__} in place of the elastic '
                'BatchNorm, of which subnets use the first channels; accepted is a '
                'config without sync_bn'
            )
        middle = middle_channels(self.expand_conv.conv.in_channels, expand)
        self.expand_conv.conv.resize(out_channels=middle)
        self.expand_conv.norm.num_features = middle
        self.depthwise_conv.conv.resize(middle, middle, kernel)
        self.depthwise_conv.norm.num_features = middle
        if self.with_se:
            squeeze = squeeze_channels(middle)
            self.se.conv1.conv.resize(middle, squeeze)
            self.se.conv2.conv.resize(squeeze, middle)
        self.linear_conv.conv.resize(in_channels=middle)

    def settle(self) -> None:
        """Becomes the plain block, in place, once its layers are plain ones."""
        for module in self.modules():
            if isinstance(module, ConvModule):
                for key in ('in_channels', 'out_channels', 'kernel_size', 'padding'):
                    setattr(module, key, getattr(module.conv, key))
                module.groups = module.conv.groups
        self.__class__ = InvertedResidual
