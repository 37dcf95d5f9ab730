"""EfficientNet-Lite0."""

from typing import Any

from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmpretrain.models.backbones import EfficientNet

from mmmpq.layers.kinds import quantizable
from mmmpq.registry import MODELS


@quantizable
@MODELS.register_module()
class SamePadConv2d(Conv2dAdaptivePadding):
    """mmcv's convolution with TensorFlow's padding, of which it takes the arguments."""

    affine = True


@MODELS.register_module()
class EfficientNetLite0(EfficientNet):
    """EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in place of Swish.

    Source: the TensorFlow release of EfficientNet-Lite (2020); EfficientNet: Rethinking
    Model Scaling for Convolutional Neural Networks (2019, arXiv 1905.11946). With a
    classifier of 1,000 classes it has 4,652,008 parameters. ``mmmpq data lite0``
    fetches its ImageNet weights. Maps images ``(N, 3, H, W)`` to ``((N, 1280, H/32,
    W/32),)``.

    Args:
        conv_cfg (dict, optional): Config of the convolutions; :class:`SamePadConv2d`
            if None, as the weights ask for.
        act_cfg (dict, optional): Config of the activations; ReLU6 if None.
        **kwargs: Other arguments of mmpretrain's :class:`EfficientNet`.
    """

    layer_settings = {
        'b': [
            [[kernel, width, 0, *rest] for kernel, width, _, *rest in stage]
            for stage in EfficientNet.layer_settings['b']
        ]
    }
    arch_settings = {'b0': EfficientNet.arch_settings['b0']}

    def __init__(
        self,
        conv_cfg: dict | None = None,
        act_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            conv_cfg=conv_cfg or dict(type='mmmpq.SamePadConv2d'),
            act_cfg=act_cfg or dict(type='ReLU6'),
            **kwargs,
        )
