"""Weights of fixed nets for the once-for-all MobileNetV3, and the other way round."""

from itertools import pairwise

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmmpq.models.elastic.block import middle_channels
from mmmpq.models.elastic.conv import smaller_kernel
from mmmpq.models.elastic.names import State
from mmmpq.models.elastic.stages import MobileNetV3Stages
from mmmpq.quantizers import per_subnet

# Which dimension of a block's tensors counts the middle channels
MIDDLE = {
    'expand_conv.conv.weight': 0,
    **{f'expand_conv.bn.{k}': 0 for k in ('weight', 'bias')},
    **{f'expand_conv.bn.running_{k}': 0 for k in ('mean', 'var')},
    'depthwise_conv.conv.weight': 0,
    **{f'depthwise_conv.bn.{k}': 0 for k in ('weight', 'bias')},
    **{f'depthwise_conv.bn.running_{k}': 0 for k in ('mean', 'var')},
    'se.conv1.conv.weight': 1,
    'se.conv2.conv.weight': 0,
    'se.conv2.conv.bias': 0,
    'linear_conv.conv.weight': 1,
}
SQUEEZE = {
    'se.conv1.conv.weight': 0,
    'se.conv1.conv.bias': 0,
    'se.conv2.conv.weight': 1,
}


def sort_channels(backbone: MobileNetV3Stages) -> None:
    """Sorts the middle channels of every block, the most important ones first.

    What the largest net computes stays the same; smaller ones, of the first channels,
    get better. Importance is the L1 norm of what the next layer makes of a channel.

    Source: Once-for-All: Train One Network and Specialize it for Efficient Deployment,
    2020, arXiv 1908.09791.

    Args:
        backbone: A supernet, of float or of quantized layers with one range per tensor.
    """
    for stage in backbone.stages.values():
        for block in stage:
            state = {k: v.detach() for k, v in block.state_dict().items()}
            before = dict(state)
            sort_block(state, '')
            for key, value in state.items():
                before[key].copy_(value)


def sort_block(state: State, prefix: str) -> None:
    """Sorts the middle channels of the block at ``prefix`` in a state dict."""
    _reorder(state, prefix, 'linear_conv.conv.weight', MIDDLE)
    if f'{prefix}se.conv2.conv.weight' in state:
        _reorder(state, prefix, 'se.conv2.conv.weight', SQUEEZE)


def _reorder(state: State, prefix: str, by: str, dims: dict[str, int]) -> None:
    importance = state[prefix + by].abs().sum((0, 2, 3))
    order = importance.argsort(descending=True, stable=True)
    for key, dim in dims.items():
        if prefix + key in state:
            state[prefix + key] = state[prefix + key].index_select(dim, order)


def fill_from_fixed(backbone: MobileNetV3Stages, state: State, prefix: str) -> None:
    """Completes the weights of a fixed net to those of the supernet, in place.

    Every block is sorted (see :func:`sort_channels`) and put into the first channels
    and the centre of the kernels; the matrices of the kernels are the identity. So the
    subnet of its architecture computes what the fixed net does. All else keeps the
    supernet's own start. A checkpoint of a supernet, which has matrices, stays as it
    is.

    Args:
        backbone: The supernet.
        state: A state dict, with mmpretrain's names or ours.
        prefix: Of the backbone's keys in it.
    """
    own = _float_tensors(backbone)
    keys = {k for k in own if f'{prefix}{k}' in state}
    blocks = {
        f'{name}.{i}.': f'{name}.{i}.linear_conv.conv.weight' in keys
        for name, stage in backbone.stages.items()
        for i in range(len(stage))
    }
    whole = all(k in keys and state[prefix + k].shape == own[k].shape for k in own)
    if whole or not any(blocks.values()) or any('.matrix_' in k for k in keys):
        return
    for block, is_there in blocks.items():
        if is_there:
            sort_block(state, prefix + block)
        for key in (k for k in own if k.startswith(block)):
            state[prefix + key] = _placed(own[key], state.get(prefix + key), key)
    print_log(
        f'a fixed net of {sum(blocks.values())} blocks is loaded into the supernet; '
        'channels, kernels and blocks that it lacks keep their own start',
        logger='current',
    )


def take_subnet(backbone: MobileNetV3Stages, state: State, prefix: str) -> None:
    """Reduces the checkpoint of a supernet to what a fixed net uses of it, in place.

    Args:
        backbone: The fixed net.
        state: A state dict; that of a fixed net stays as it is.
        prefix: Of the backbone's keys in it.
    """
    stages = tuple(f'{prefix}{name}.' for name in backbone.stages)
    keys = [k for k in state if k.startswith(stages)]
    own = backbone.state_dict()
    elastic = any('.matrix_' in k or '.relaxation.' in k for k in keys)
    if not (elastic or _is_largest(backbone, state, prefix)):
        return
    for name in (k[len(prefix) :] for k in keys):
        if name in own:
            value = state[prefix + name]
            if name.endswith('depthwise_conv.conv.weight'):
                conv = prefix + name.removesuffix('weight')
                for large, small in pairwise(backbone.kernels[::-1]):
                    matrix = state.get(f'{conv}matrix_{large}to{small}')
                    if matrix is not None and large > own[name].shape[-1]:
                        value = smaller_kernel(value, matrix)
            state[prefix + name] = _first_channels(value, own[name], name)
    for key in keys:
        if key[len(prefix) :] not in own:
            del state[key]
    measured = set(per_subnet(backbone)) if elastic else ()
    for name, module in backbone.named_modules():
        signed = f'{prefix}{name}.signed'
        if module in measured and signed in state:
            state[signed] = torch.full_like(state[signed], -1)  # not this net's


def _is_largest(backbone: MobileNetV3Stages, state: State, prefix: str) -> bool:
    """Whether all blocks of the supernet are there with all their channels."""
    for name, stage in backbone.stages.items():
        channels = stage[0].expand_conv.conv.in_channels
        for i in range(backbone.depths[-1]):
            weight = state.get(f'{prefix}{name}.{i}.linear_conv.conv.weight')
            middle = middle_channels(channels, backbone.expands[-1])
            if weight is None or weight.shape[1] != middle:
                return False
            channels = len(weight)
    return True


def _first_channels(value: Tensor, own: Tensor, name: str) -> Tensor:
    if '.a_quantizer.' in name:
        return value
    if '.w_quantizer.' in name:  # (widths, channels); widths choose their rows later
        return value[:, : own.shape[1]] if value.dim() == 2 else value
    return value[tuple(slice(n) for n in own.shape[:2])]  # kernels fit, or are refused


def _placed(own: Tensor, value: Tensor | None, key: str) -> Tensor:
    """``value`` in the first channels and the centre of the kernel of ``own``."""
    if '.matrix_' in key:
        return torch.eye(len(own))
    if value is None:
        return own.clone()
    if any(g > o for g, o in zip(value.shape, own.shape, strict=True)):
        return value  # torch says which shapes differ
    if value.dim() == 0:
        return value
    placed = own.detach().clone()
    if value.dim() == 4 and value.shape[2:] != own.shape[2:]:
        margin = (own.shape[-1] - value.shape[-1]) // 2
        centre = slice(margin, margin + value.shape[-1])
        placed[: value.shape[0], : value.shape[1], centre, centre] = value
    else:
        placed[tuple(slice(n) for n in value.shape)] = value
    return placed


def _float_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    return {
        f'{name}.{key}': tensor
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
        for key, tensor in {**module._parameters, **module._buffers}.items()
        if tensor is not None
    }
