"""How many different subnets a supernet holds, exactly."""

from math import prod

from torch import nn

from mmmpq.layers import MixedLayer


def count_subnets(model: nn.Module) -> int:
    """The number of subnets of ``model`` that differ in a layer that computes.

    The choices of blocks that a subnet leaves out are not counted. A group of layers
    that chooses one precision is counted where the first block of a stage has it.

    Args:
        model: A model with mixed layers, with elastic modules, or with both.

    Examples:
        >>> from mmmpq.models import ElasticMobileNetV3
        >>> small = ElasticMobileNetV3(depths=(1, 2), kernels=(3, 5), expands=(3,))
        >>> count_subnets(small) == (2 + 2 * 2) ** 5
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


def _choices(model: nn.Module) -> dict[str, int]:
    """Precisions of each layer; of a group, of the first of its layers in its stage."""
    first: dict[int, tuple[int, str, int]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MixedLayer):
            block = max((int(p) for p in name.split('.') if p.isdigit()), default=0)
            key, count = id(layer.relaxation), len(layer.candidates)
            first[key] = min(first.get(key, (block, name, count)), (block, name, count))
    return {name: count for _, name, count in first.values()}
