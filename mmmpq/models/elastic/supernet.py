"""MobileNetV3 as a once-for-all supernet."""

from collections.abc import Iterator
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.layers.idle import with_idle
from mmmpq.models.elastic.block import ElasticInvertedResidual
from mmmpq.models.elastic.genes import Genes, checked
from mmmpq.models.elastic.macs import layer_sizes
from mmmpq.models.elastic.mobilenetv3 import SubnetMobileNetV3
from mmmpq.models.elastic.stages import MobileNetV3Stages
from mmmpq.models.elastic.weights import fill_from_fixed
from mmmpq.registry import MODELS


@MODELS.register_module()
class ElasticMobileNetV3(MobileNetV3Stages):
    """The once-for-all MobileNetV3: elastic depth, kernel size and expansion.

    A stem, a fixed block, stages of inverted residual blocks, and the 1x1 final expand
    layer. A stage of depth d has its first d blocks; the middle channels of a block are
    ``expand`` times its input channels, the first of the largest block's. Widths are
    multiples of 8 near ``width_mult`` times the given ones. Classifiers add the feature
    mix layer and the classifier by mmpretrain's ``StackedLinearClsHead``.

    Genes are ``stage1.depth`` and, for each block, ``stage1.0.kernel`` and
    ``stage1.0.expand``, all at their largest value at first. Float weights of a fixed
    net (ours, or mmpretrain's MobileNetV3) load as a subnet, channels sorted by
    importance; those of the published once-for-all supernets load into classifiers.

    Source: Once-for-All: Train One Network and Specialize it for Efficient Deployment,
    2020, arXiv 1908.09791; Searching for MobileNetV3, 2019, arXiv 1905.02244.

    Args:
        width_mult: Width multiplier; 1.2 in BatchQuant, 2021, arXiv 2105.08952.
        depths: Numbers of blocks that a stage may have.
        kernels: Sizes that a depthwise kernel may take.
        expands: Ratios of middle to input channels.
        stem: Width and stride of the first convolution.
        first: Width and stride of the fixed block.
        stages: Width, stride, squeeze-excite and activation of each stage.
        last: Width of the final expand layer, which is the output's.
        in_channels: Channels of the image.
        norm_cfg: Config of a BatchNorm.
        init_cfg: Initialisation; Kaiming normal if None.

    Raises:
        ValueError: A choice that is no list of positive numbers, an even kernel, a
            largest expansion of 1, or another norm than 'BN'.
    """

    def _read(self) -> None:
        self.architecture = {gene: v[-1] for gene, v in self._genes().items()}

    def _depth(self, stage: str) -> int:
        return self.depths[-1]

    def _block(self, name, in_channels, out, stride, with_se, act_cfg):
        return ElasticInvertedResidual(
            *(in_channels, out, self.kernels, self.expands, stride, with_se),
            norm_cfg=self.norm_cfg,
            act_cfg=act_cfg,
        )

    def genes(self) -> Genes:
        """Gene -> allowed values, smallest first."""
        return self._genes()

    def activate(self, values: dict[str, Any]) -> None:
        """Puts a subnet to use; genes that are not given stay as they are.

        Raises:
            ValueError: A value that is not allowed.
        """
        self.architecture.update(checked(self.genes(), values, 'subnet'))
        for name, stage in self.stages.items():
            for i, block in enumerate(stage):
                block.resize(
                    self.architecture[f'{name}.{i}.kernel'],
                    self.architecture[f'{name}.{i}.expand'],
                )

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks in use."""
        for name, stage in self.stages.items():
            yield from islice(stage, self.architecture[f'{name}.depth'])

    def idle(self, values: dict[str, Any]) -> Iterator[str]:
        """Genes, and blocks by name, that the depths among ``values`` leave out."""
        for name in self._stage_names:
            for i in range(values[f'{name}.depth'], self.depths[-1]):
                yield from (f'{name}.{i}', f'{name}.{i}.kernel', f'{name}.{i}.expand')

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (x,) = super().forward(x)
        if torch.is_grad_enabled():
            x = with_idle(x, self._idle_parameters())
        return (x,)

    def _idle_parameters(self) -> Iterator[nn.Parameter]:
        for name, stage in self.stages.items():
            for block in islice(stage, self.architecture[f'{name}.depth'], None):
                yield from block.parameters()

    def layer_macs(self, values: dict[str, Any], resolution: int) -> dict[str, int]:
        """Multiply-accumulates of the layers in use for one square image.

        Args:
            values: Genes; those of inactive blocks are not needed.
            resolution: Side of the image in px.

        Returns:
            Name of the layer in this backbone -> MACs.
        """
        sizes = layer_sizes(self, values, resolution).items()
        return {name: weights * pixels for name, (weights, pixels) in sizes}

    def layer_weights(self, values: dict[str, Any]) -> dict[str, int]:
        """Weights of the layers in use, by name, as of :meth:`layer_macs`."""
        return {
            name: weights for name, (weights, _) in layer_sizes(self, values).items()
        }

    def count(self, choices: dict[str, int]) -> int:
        """Number of different subnets, layers in use alone counted:

        Π over stages of Σ_d Π_{blocks < d} kernels · expansions · precisions.

        Args:
            choices: Precisions of each layer, by its name in this backbone; 1 if
                missing.
        """
        rest = dict(choices)
        total = 1
        for name, stage in self.stages.items():
            nets, subnets = 1, 0
            for i in range(len(stage)):
                inside = [n for n in rest if n.startswith(f'{name}.{i}.')]
                nets *= len(self.kernels) * len(self.expands)
                nets *= prod(rest.pop(n) for n in inside)
                subnets += nets if i + 1 in self.depths else 0
            total *= subnets
        return total * prod(rest.values())

    def settle(self) -> None:
        """Becomes the fixed net of the subnet in use, once its blocks are plain."""
        for name, stage in self.stages.items():
            setattr(self, name, stage[: self.architecture[f'{name}.depth']])
        self.__class__ = SubnetMobileNetV3

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        fill_from_fixed(self, state_dict, prefix)
