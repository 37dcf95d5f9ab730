"""What a model does before it takes the weights of a packed checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import quantized_layers
from mmmpq.policy import Policy, Precision


class Folded(nn.Identity):
    """In the place of a BatchNorm that is part of the layer before it.

    Args:
        layer: Name of that layer in the model.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer


def without_batchnorm(model: nn.Module, folded: Mapping[str, str]) -> nn.Module:
    """Puts :class:`Folded` in the place of BatchNorms, and a bias into the layers.

    Biases that are new are not trained.

    Args:
        model: Changed in place.
        folded: Names of BatchNorms, and of the layers that they are part of.

    Raises:
        ValueError: The model has no such modules.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in folded.items():
        norm = isinstance(modules.get(name), (_BatchNorm, Folded))
        weight = getattr(modules.get(layer), 'weight', None)
        if not norm or not isinstance(weight, Tensor):
            raise ValueError(
                f'the checkpoint is of another model: it has folded '
                f'{name} into {layer}, which {type(model).__name__} does not have'
            )
    for name, layer in folded.items():
        parent, _, child = name.rpartition('.')
        if not isinstance(modules[name], Folded):
            setattr(modules[parent], child, Folded(layer))
        weight, bias = modules[layer].weight, modules[layer].bias
        if bias is None:
            # An optimizer that is there already would not know it.
            bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
            modules[layer].bias = bias
    return model


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises ValueError if the model's layers have not the policy's precisions."""
    layers = quantized_layers(model)
    found = {n: getattr(layer, 'precision', None) for n, layer in layers.items()}
    if None in found.values():
        raise ValueError(
            'load_from: a packed checkpoint is the end of a search, and has one '
            'precision per layer; a search starts from a float checkpoint'
        )
    policy.check_layers(found)
    others = [
        f'{n} ({policy.layers[n]} in the checkpoint, {p} in the model)'
        for n, p in found.items()
        if policy.layers[n] != p
    ]
    if others:
        more = f' and {len(others) - 3} more' if len(others) > 3 else ''
        raise ValueError(
            'policy: the checkpoint is of another policy than the model: '
            f'{", ".join(others[:3])}{more}'
        )


def prepare(model: nn.Module, packed: Mapping[str, Any]) -> None:
    """Checks that ``model`` is the one of a packed checkpoint, and brings it in shape.

    Args:
        model: Nothing in it is changed if an error is raised.
        packed: ``layers`` and ``meta`` of the policy, and ``folded``.

    Raises:
        ValueError: Another model, or another policy.
    """
    layers = {n: Precision(*p) for n, p in packed['layers'].items()}
    if quantized_layers(model):
        check_policy(model, Policy(layers, dict(packed['meta'])))
    without_batchnorm(model, packed['folded'])


def watch_loading(model: nn.Module) -> None:
    """Lets ``model`` be prepared whenever it loads a packed checkpoint."""
    model._register_load_state_dict_pre_hook(_prepare, with_module=True)


@torch.no_grad()
def _prepare(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    if 'packed' in metadata:
        prepare(model, metadata['packed'])
