"""Backbones that the toolboxes lack."""

from importlib.util import find_spec

__all__ = []

if find_spec('mmpretrain'):
    from mmmpq.models.backbones.cifar_resnet import CifarResNet  # noqa: F401

    __all__.append('CifarResNet')
