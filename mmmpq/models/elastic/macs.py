"""Weights and output pixels of a MobileNetV3 subnet's layers, without running it."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from mmmpq.models.elastic.block import middle_channels, squeeze_channels
from mmmpq.models.elastic.stages import MobileNetV3Stages

Sizes = dict[str, tuple[int, int]]


def layer_sizes(
    backbone: MobileNetV3Stages, values: Mapping[str, Any], resolution: int = 1
) -> Sizes:
    """Weights and output pixels of every layer in use, by its name in the backbone.

    Their product is what the layer computes in multiply-accumulates. It has out · in /
    groups · k² weights; with an odd kernel k and padding k // 2, stride s maps a side
    n to ⌈n / s⌉.

    Args:
        backbone: The supernet.
        values: Genes of the blocks in use.
        resolution: Side of the square image in px.
    """
    stem, last = backbone.stem.conv, backbone.last.conv
    side = -(-resolution // stem.stride[0])
    sizes = {'stem.conv': (stem.weight.numel(), side**2)}
    side = _add_block(sizes, backbone.first, 'first', 1, 3, side)
    for name, stage in backbone.stages.items():
        for i in range(values[f'{name}.depth']):
            expand, kernel = values[f'{name}.{i}.expand'], values[f'{name}.{i}.kernel']
            side = _add_block(sizes, stage[i], f'{name}.{i}', expand, kernel, side)
    sizes['last.conv'] = last.weight.numel(), side**2
    return sizes


def _add_block(
    sizes: Sizes, block: Any, name: str, expand: float, kernel: int, side: int
) -> int:
    """Adds the layers of a block; returns the side of its output."""
    first = block.expand_conv if block.with_expand_conv else block.depthwise_conv
    stride = block.depthwise_conv.conv.stride[0]
    out_side = -(-side // stride)
    # 'i': pixels of the input, 'o' of the output; squeeze-excite sees one.
    pixels = dict(i=side**2, o=out_side**2, se=1)
    for layer, weights, where in _block_weights(
        first.conv.in_channels,
        block.linear_conv.conv.out_channels,
        *(expand, kernel, block.with_expand_conv, block.with_se),
    ):
        sizes[f'{name}.{layer}'] = weights, pixels[where]
    return out_side


@cache
def _block_weights(
    in_channels: int,
    out_channels: int,
    expand: float,
    kernel: int,
    with_expand: bool,
    with_se: bool,
) -> tuple[tuple[str, int, str], ...]:
    middle = middle_channels(in_channels, expand) if with_expand else in_channels
    layers = []
    if with_expand:
        layers.append(('expand_conv.conv', in_channels * middle, 'i'))
    layers.append(('depthwise_conv.conv', middle * kernel**2, 'o'))
    if with_se:
        squeeze = middle * squeeze_channels(middle)
        layers += [(f'se.conv{i}.conv', squeeze, 'se') for i in (1, 2)]
    layers.append(('linear_conv.conv', middle * out_channels, 'o'))
    return tuple(layers)
