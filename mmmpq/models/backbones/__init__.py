"""Backbones that the toolboxes lack."""

from importlib.util import find_spec

__all__ = []

if find_spec('mmpretrain'):
    from mmmpq.models.backbones.cifar_resnet import CifarResNet
    from mmmpq.models.backbones.efficientnet_lite import (
        EfficientNetLite0,
        SamePadConv2d,
    )
    from mmmpq.models.backbones.preact_resnet import PreActResNet

    __all__ += ['CifarResNet', 'EfficientNetLite0', 'PreActResNet', 'SamePadConv2d']
