"""How many different subnets a supernet holds, exactly."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from torch import nn

from mmmpq.layers import MixedLayer

if TYPE_CHECKING:
    from mmmpq.models.elastic.supernet import ElasticMobileNetV3


def count_subnets(model: nn.Module) -> int:
    """The number of subnets of ``model`` that differ in a layer that computes.

    The choices of blocks that a subnet leaves out are not counted. A group of layers
    that chooses one precision is counted where the first block of a stage has it.

    Args:
        model: A model with mixed layers, with elastic modules, or with both.

    Examples:
        >>> count_subnets(once_for_all_with_bits_2_3_4) > 10**76  # doctest: +SKIP
        True
    """
    choices = _choices(model)
    total = 1
    for name, module in model.named_modules():
        if not hasattr(module, 'genes'):
            continue
        if not hasattr(module, 'count'):
            total *= prod(len(values) for values in module.genes().values())
            continue
        prefix = f'{name}.' if name else ''
        inside = [n for n in choices if n.startswith(prefix)]
        total *= module.count({n[len(prefix) :]: choices.pop(n) for n in inside})
    return total * prod(choices.values())


def count_architectures(
    backbone: 'ElasticMobileNetV3', choices: Mapping[str, int]
) -> int:
    """Π over stages of Σ_d Π_{blocks < d} kernels · expansions · precisions.

    Args:
        backbone: The supernet.
        choices: Precisions of each layer, by its name in the backbone; 1 if missing.
    """
    rest = dict(choices)
    total = 1
    for name, stage in backbone.stages.items():
        nets, subnets = 1, 0
        for i in range(len(stage)):
            inside = [n for n in rest if n.startswith(f'{name}.{i}.')]
            nets *= len(backbone.kernels) * len(backbone.expands)
            nets *= prod(rest.pop(n) for n in inside)
            subnets += nets if i + 1 in backbone.depths else 0
        total *= subnets
    return total * prod(rest.values())


def _choices(model: nn.Module) -> dict[str, int]:
    """Precisions of each layer; of a group, of the first of its layers in its stage."""
    found: dict[int, tuple[int, str, int]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MixedLayer):
            block = max((int(p) for p in name.split('.') if p.isdigit()), default=0)
            key, count = id(layer.relaxation), len(layer.candidates)
            found[key] = min(found.get(key, (block, name, count)), (block, name, count))
    return {name: count for _, name, count in found.values()}
