"""Which residual blocks may be skipped, and which of them a policy skips."""

from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from torch import nn

from mmmpq.costs import layer_type
from mmmpq.models.selection import block_of
from mmmpq.policy import SKIP, Precision

# By what attribute the toolboxes' blocks say that their shortcut is the identity, which
# it is only where the output has the shape of the input. ResNet's blocks have
# `downsample`, None or the projection.
IDENTITY = (
    'with_res_shortcut',  # InvertedResidual
    'use_res_connect',  # InvertedResidual of mmpretrain's MobileNetV2
    'with_residual',  # EdgeResidual of EfficientNet
    'add_identity',  # blocks of Darknet and CSPNeXt
)


def skippable(
    modules: Mapping[str, nn.Module], groups: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Groups that may be skipped, with their blocks; the others are said once.

    Args:
        modules: The model's modules by name.
        groups: Layers of each group.

    Raises:
        ValueError: No group may be skipped.
    """
    blocks: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for group, members in groups.items():
        block, reason = _block(modules, members)
        if reason:
            others.setdefault(reason, []).append(group)
        else:
            blocks[group] = block
    reasons = '; '.join(f'{", ".join(names)} ({r})' for r, names in others.items())
    if not blocks:
        raise ValueError(
            f'quant.candidates: found {SKIP} = (0, 0), but no group can be skipped: '
            f'{reasons or "there is none"}'
        )
    if reasons:
        print_log(
            f'quant.candidates: {SKIP} is left out of groups that cannot be skipped: '
            f'{reasons}',
            logger='current',
        )
    return blocks


def check_skips(
    modules: Mapping[str, nn.Module], precisions: Mapping[str, Precision], key: str
) -> dict[str, str]:
    """The blocks that ``precisions`` skip, each with one of its layers.

    Args:
        modules: The model's modules by name.
        precisions: Of quantized layers, by name.
        key: What they were given as, for the message of an error.

    Raises:
        ValueError: A layer at 0 bits whose block cannot be skipped, or of whose block
            other layers are not at 0 bits.
    """
    skipped = [n for n, p in precisions.items() if p == SKIP]
    blocks: dict[str, list[str]] = {}
    for name in skipped:
        blocks.setdefault(block_of(name, modules), []).append(name)
    for members in blocks.values():
        reason = _block(modules, members)[1]
        if reason:
            raise ValueError(
                f'{key}: found {SKIP} = (0, 0) for {", ".join(members)}; it is '
                'accepted for all layers of a residual block whose shortcut is the '
                f'identity: {reason}'
            )
    return {block: members[0] for block, members in blocks.items()}


def _block(modules: Mapping[str, nn.Module], members: Sequence[str]) -> tuple[str, str]:
    """The block that these layers are, and why it cannot be skipped, '' if it can."""
    block = block_of(members[0], modules)
    if block in members or any(block_of(n, modules) != block for n in members):
        return block, 'not one residual block'
    others = [
        n
        for n, m in modules.items()
        if n.startswith(f'{block}.') and layer_type(m) and n not in members
    ]
    if others:
        return block, f'not all of {block}: {", ".join(others)} apart'
    module = modules[block]
    if hasattr(module, 'downsample'):
        return block, '' if module.downsample is None else 'a projection as shortcut'
    flags = [bool(getattr(module, key)) for key in IDENTITY if hasattr(module, key)]
    if not flags:
        kind = type(module).__name__
        return block, f'{kind} does not say that its shortcut is the identity'
    return block, '' if all(flags) else 'no identity shortcut'
