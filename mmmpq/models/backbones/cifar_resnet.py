"""The thin residual networks for CIFAR (ResNet-20, 32, 44, 56)."""

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

from mmmpq.arguments import check_least
from mmmpq.registry import MODELS

DEPTHS = (20, 32, 44, 56)
KAIMING = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer='_BatchNorm'),
]


class PadShortcut(nn.Module):
    """The parameter-free shortcut ("option A"): strided slice, zero channels.

    ``(N, C, H, W) -> (N, C + channels, ceil(H / stride), ceil(W / stride))``

    Args:
        channels (int): Number of zero channels to append.
        stride (int): Step of the slice in both directions.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[..., :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.channels))


@MODELS.register_module()
class CifarResNet(BaseBackbone):
    """The CIFAR ResNet of depth 6n + 2: three stages of n basic blocks.

    Source: Deep Residual Learning for Image Recognition (2015, arXiv 1512.03385),
    section 4.2. A 3x3 stem and stages of 16, 32 and 64 channels at strides 1, 2 and
    2; shortcuts carry no parameters. Depth 20 with a ten-way classifier has 269,722
    parameters. It differs from mmpretrain's ``ResNet_CIFAR``, an ImageNet ResNet with
    another stem.

    Args:
        depth (int): 20, 32, 44 or 56.
        in_channels (int): Channels of the image.
        base_channels (int): Channels of the stem and the first stage.
        stem_stride (int): Stride of the stem; 1 as in the paper.
        conv_cfg (dict, optional): Config of the conv layers.
        norm_cfg (dict, optional): Config of the norm layers; BatchNorm if None.
        init_cfg (dict | list, optional): Initialisation; Kaiming normal if None, as
            in the paper.

    Raises:
        ValueError: If ``depth`` is not one of the four.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 16,
        stem_stride: int = 1,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        if depth not in DEPTHS:
            raise ValueError(f'depth={depth}: CifarResNet accepts {DEPTHS}')
        check_least(
            'CifarResNet',
            in_channels=(in_channels, 1),
            base_channels=(base_channels, 1),
            stem_stride=(stem_stride, 1),
        )
        super().__init__(init_cfg=init_cfg or KAIMING)
        norm_cfg = norm_cfg or dict(type='BN')
        self.conv1 = build_conv_layer(
            conv_cfg,
            in_channels,
            base_channels,
            3,
            stride=stem_stride,
            padding=1,
            bias=False,
        )
        self.bn1 = build_norm_layer(norm_cfg, base_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        width = base_channels
        for stage in range(3):
            out = base_channels * 2**stage
            blocks = []
            for i in range((depth - 2) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(
                    BasicBlock(
                        width,
                        out,
                        stride=stride,
                        downsample=PadShortcut(out - width, 2) if stride > 1 else None,
                        conv_cfg=conv_cfg,
                        norm_cfg=norm_cfg,
                    )
                )
                width = out
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Maps images ``(N, C, H, W)`` to ``((N, 4 * base_channels, H/S, W/S),)``.

        S is 4 * stem_stride; sizes are rounded up.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)
