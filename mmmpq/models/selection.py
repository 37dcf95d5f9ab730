"""Which layers of a model are quantized, which are fixed, which choose together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from mmmpq.costs.flow import Flow
from mmmpq.layers import PLAIN
from mmmpq.policy import Precision, near, parse_candidates, some_of

# Final prediction layers of the toolboxes' heads, where no forward tells which they
# are. Matched against the parts of a layer's name.
PREDICTION_LAYERS = [
    'retina_cls',
    'retina_reg',
    'rpn_cls',
    'rpn_reg',
    'fc_cls',
    'fc_reg',
    'conv_cls',
    'conv_reg',
    'conv_seg',
    'conv_centerness',
    'conv_logits',
    'conv_obj',
    'atss_cls',
    'atss_reg',
    'atss_centerness',
    'gfl_cls',
    'gfl_reg',
    'vfnet_cls',
    'vfnet_reg',
    'rtm_cls',
    'rtm_reg',
    'rtm_obj',
    'fcos_cls',
    'fcos_reg',
    'multi_level_conv_cls',
    'multi_level_conv_reg',
    'multi_level_conv_obj',
    'cls_branches',
    'reg_branches',
    'convs_pred',
    'heatmap_head',
    'wh_head',
    'offset_head',
    'class_embed',
    'bbox_embed',
    'reppoints_cls_out',
    'reppoints_pts_init_out',
    'reppoints_pts_refine_out',
    'cls_embed',
    'solo_cls',
    'atss_iou',
    'aux_cls_branches',
    'aux_reg_branches',
    'bbox_pred',
    'centerness',
    'cls_score',
    'conv_coeff',
    'conv_kernel',
    'conv_pred',
    'fc_reg_cls',
    'fc_reg_offset',
    'object_pred',
    'retina_bbox_cls',
    'retina_bbox_reg',
    'rtm_kernel',
    'tood_cls',
    'tood_reg',
    'vfnet_reg_refine',
]
CLASSIFIER_LAYERS = ('head.fc', 'head.layers.*', 'head.head', 'fc', 'classifier')

# Nearest enclosing module of one of these names is a residual block.
BLOCKS = re.compile(
    r'(Block|Bottleneck|InvertedResidual|Residual|EncoderLayer'
    r'|DecoderLayer|BasicBlock\w*|Bottle2neck|Bottleneck\w*)$'
)


def expand(patterns: Iterable[str], names: Sequence[str], key: str) -> list[str]:
    """The names that match any shell pattern, in the order of ``names``.

    Raises:
        ValueError: A pattern that matches nothing; near names are listed.
    """
    matches = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f'{key}: found {pattern!r}; accepted are shell patterns such as '
                '"backbone.layer1.*"'
            )
        hits = [n for n in names if fnmatchcase(n, pattern)]
        if not hits:
            raise ValueError(
                f'{key}: {pattern!r} matches no layer; {near(pattern, names)}'
            )
        matches.update(hits)
    return [n for n in names if n in matches]


def default_fixed(
    model: nn.Module, names: Sequence[str], flow: Flow | None = None
) -> list[str]:
    """Stem and final prediction layers: the detector-safe default.

    Where the stem cannot be quantized and stays float, no other takes its place. The
    last layers of a toolbox's model are those of a forward, and, as a loss reads those
    of a cascade's inner stages as well, what has a name of a prediction layer and the
    shape of one of them. Those of any other net are told by names.

    Args:
        model: The model.
        names: The layers that are quantized.
        flow: Of its forward; without one, too, names have to do.
    """
    stem = [] if len(names) == 1 else [stem_of(model)]
    last = [n for n in names if set(n.split('.')) & set(PREDICTION_LAYERS)]
    if flow is not None and isinstance(model, BaseModel):
        shapes = {n: model.get_submodule(n).weight.shape for n in names}
        ends = flow.last & set(names)
        alike = {shapes[n] for n in ends}
        last = [*ends, *(n for n in last if shapes[n] in alike)]
    elif not hasattr(model, 'bbox_head') and not hasattr(model, 'roi_head'):
        last += [n for n in names if any(fnmatchcase(n, p) for p in CLASSIFIER_LAYERS)]
    return [n for n in names if n in set(stem) | set(last)]


def stem_of(model: nn.Module) -> str:
    """The layer that sees the image: the first of ``model.backbone``, if it has one."""
    layers = [n for n, m in model.named_modules() if isinstance(m, PLAIN)]
    layers.append('')  # the model itself, should it have no such layer
    return next((n for n in layers if n.startswith('backbone.')), layers[0])


def parse_fixed(
    fixed: dict[str, Any], names: Sequence[str]
) -> dict[str, Precision | None]:
    """``{pattern: precision or None}`` to ``{layer: ...}``; later patterns win."""
    if not isinstance(fixed, dict):
        raise ValueError(
            f'quant.fixed: found {fixed!r}; accepted is a dict of patterns to '
            'precisions, with None to search a layer that is fixed by default'
        )
    layers: dict[str, Precision | None] = {}
    for pattern, value in fixed.items():
        key = f'quant.fixed[{pattern!r}]'
        precision = None if value is None else Precision.parse(value, key)
        layers.update(dict.fromkeys(expand([pattern], names, 'quant.fixed'), precision))
    return layers


def candidates_of(
    candidates: Any, names: Sequence[str]
) -> tuple[dict[str, tuple[Precision, ...]], set[str]]:
    """The candidates of every layer, and the layers that a pattern names.

    Args:
        candidates: Precisions for all layers, or ``{pattern: precisions}``, where later
            patterns win and '*' names none.
        names: The layers.

    Raises:
        ValueError: A pattern that matches nothing, or precisions that cannot be read.
    """
    key = 'quant.candidates'
    if not isinstance(candidates, Mapping):
        return dict.fromkeys(names, parse_candidates(candidates, key)), set()
    choices: dict[str, tuple[Precision, ...]] = {}
    named: set[str] = set()
    for pattern, values in candidates.items():
        precisions = parse_candidates(values, f'{key}[{pattern!r}]')
        matched = expand([pattern], names, key)
        choices.update(dict.fromkeys(matched, precisions))
        named |= set(matched) if pattern != '*' else set()
    return choices, named


def group_candidates(
    candidates: dict[str, tuple[Precision, ...]], groups: dict[str, list[str]]
) -> dict[str, tuple[Precision, ...]]:
    """The candidates of every group.

    Raises:
        ValueError: A layer has none, or those of a group have different ones.
    """
    without = [n for members in groups.values() for n in members if n not in candidates]
    if without:
        raise ValueError(
            f'quant.candidates: no pattern matches {some_of(without)}; "*" stands for '
            'all layers'
        )
    choices = {}
    for group, members in groups.items():
        each = {candidates[n] for n in members}
        if len(each) > 1:
            raise ValueError(
                f'quant.candidates: the layers of {group} share one choice, but their '
                f'patterns give them different candidates: {", ".join(members)}; give '
                'them the same, or another quant.groups'
            )
        (choices[group],) = each
    return choices


def group_layers(
    model: nn.Module, names: Sequence[str], groups: Any
) -> dict[str, list[str]]:
    """Layers that share one choice: ``{group: layers}`` in network order.

    Args:
        model: The model.
        names: The searchable layers.
        groups: 'layer'; 'residual_block'; or a list of patterns, or of lists of them:
            what an entry matches is a group, and every other layer is one of its own.
    """
    if groups == 'layer':
        label = {n: n for n in names}
    elif groups == 'residual_block':
        modules = dict(model.named_modules())
        label = {n: block_of(n, modules) for n in names}
    elif isinstance(groups, (list, tuple)):
        label = {n: n for n in names}
        entry_of: dict[str, Any] = {}
        for entry in groups:
            patterns = [entry] if isinstance(entry, str) else entry
            if not isinstance(patterns, (list, tuple)) or not patterns:
                raise ValueError(
                    f'quant.groups: found {entry!r}; accepted are patterns such as '
                    '"backbone.layer1.*", and lists of them'
                )
            matched = expand(patterns, names, 'quant.groups')
            for name in matched:
                if name in entry_of:
                    raise ValueError(
                        f'quant.groups: {name} is matched by {entry_of[name]!r} and by '
                        f'{entry!r}; a layer belongs to one group'
                    )
                entry_of[name] = entry
                label[name] = ' + '.join(patterns)
    else:
        raise ValueError(
            f'quant.groups: found {groups!r}; accepted are "layer", "residual_block" '
            'and a list of patterns or of lists of patterns'
        )
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(label[name], []).append(name)
    return members


def block_of(name: str, modules: dict[str, nn.Module]) -> str:
    """The nearest enclosing residual block of a layer; its own name without one."""
    parts = name.split('.')
    for end in range(len(parts) - 1, 0, -1):
        parent = '.'.join(parts[:end])
        if BLOCKS.search(type(modules[parent]).__name__):
            return parent
    return name
