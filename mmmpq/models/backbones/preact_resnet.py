"""Residual networks whose normalisation stands before the convolutions."""

from typing import Any

from mmcv.cnn import build_norm_layer
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor
from torch.utils import checkpoint

from mmmpq.registry import MODELS


class _PreAct:
    """A residual block of mmpretrain with one more BatchNorm, before all else.

    ``y = shortcut + bn2(conv2(relu(bn1(conv1(relu(bn0(x)))))))``, a bottleneck with one
    convolution more. The shortcut is ``x``, or the convolution of ``relu(bn0(x))``.
    """

    convs = 2

    def __init__(self, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(in_channels, *args, **kwargs)
        self.norm0_name, norm0 = build_norm_layer(self.norm_cfg, in_channels, postfix=0)
        self.add_module(self.norm0_name, norm0)

    @property
    def norm0(self):
        return getattr(self, self.norm0_name)

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint.checkpoint(self._sum, x, use_reentrant=False)
        return self._sum(x)

    def _sum(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm0(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        for k in range(1, self.convs + 1):
            out = getattr(self, f'norm{k}')(getattr(self, f'conv{k}')(out))
            if k < self.convs:
                out = self.relu(out)
        return shortcut + self.drop_path(out)


class PreActBasicBlock(_PreAct, BasicBlock):
    __doc__ = _PreAct.__doc__


class PreActBottleneck(_PreAct, Bottleneck):
    __doc__ = _PreAct.__doc__
    convs = 3


@MODELS.register_module()
class PreActResNet(ResNet):
    """The ResNet that EdMIPS searches: every convolution has a BatchNorm before it.

    So what a block's first convolution quantizes has the variance that the constants of
    :class:`mmmpq.GaussianQuantizer` assume; behind a sum it has not. The stem is conv,
    max pooling, BatchNorm; a ReLU follows the last block. Layers have the names of
    mmpretrain's ResNet, and ``bn0`` in every block: its checkpoints do not fit.

    Source: Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020,
    arXiv 2004.05795, as in the authors' code.

    Args:
        depth: 18, 34, 50, 101 or 152.
        zero_init_residual: Whether the last BatchNorm of a block starts at 0.
        **kwargs: As of mmpretrain's ResNet, but for ``deep_stem``.
    """

    arch_settings = {
        depth: (PreActBasicBlock if depth < 50 else PreActBottleneck, blocks)
        for depth, (_, blocks) in ResNet.arch_settings.items()
    }

    def __init__(
        self, depth: int, zero_init_residual: bool = False, **kwargs: Any
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'depth={depth}: PreActResNet accepts {(*self.arch_settings,)}'
            )
        if kwargs.get('deep_stem'):
            raise ValueError('deep_stem: PreActResNet has the 7x7 stem alone')
        super().__init__(depth, zero_init_residual=zero_init_residual, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps images ``(N, C, H, W)`` to the stages of ``out_indices``."""
        x = self.norm1(self.maxpool(self.conv1(x)))
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x.relu())
        return tuple(outs)
