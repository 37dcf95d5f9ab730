"""Policies and nets: how one is read, and how a net becomes that of one."""

import json
import logging
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmmpq.layers import (
    MixedLayer,
    Skip,
    float_twin,
    quantized_layers,
    quantized_parts,
)
from mmmpq.models.skipping import check_skips
from mmmpq.policy import Policy, Precision
from mmmpq.quantizers import per_subnet
from mmmpq.user_config import type_name


def read_policy(policy: Any) -> Policy | Precision:
    """A policy, or the one precision of all layers."""
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return Policy.from_dict(policy, 'quant.policy')
    try:
        return Precision.parse(policy, 'quant.policy')
    except ValueError:
        if not isinstance(policy, (str, PathLike)) or _looks_uniform(policy):
            raise
        return Policy.load(policy)


def _looks_uniform(policy: str | PathLike) -> bool:
    text = str(policy)
    return len(text) <= 8 and text[:1] in 'Ww' and not text.endswith('.json')


def quantizers_of(
    carried: dict[str, Any], configs: tuple[dict | None, dict | None]
) -> tuple[dict, dict]:
    """The quantizers of weights and activations: those given, else the policy's.

    The fine-tuning of a net with other quantizers than it was searched with starts
    from ranges that mean something else.
    """
    result = []
    for key, config in zip(('w_quantizer', 'a_quantizer'), configs, strict=True):
        searched = carried[key]
        if isinstance(config, Mapping) and recorded(config) != searched:
            print_log(
                f'quant.{key}: found {dict(config)}, but the policy was found with '
                f'{searched}; the former is used, and to be calibrated or trained anew',
                logger='current',
                level=logging.WARNING,
            )
        result.append(searched if config is None else config)
    return tuple(result)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """A quantizer's config as JSON holds it, with the name of its type alone."""
    config = dict(config, type=type_name(config))
    return json.loads(json.dumps(config, default=str))


def apply_policy(model: nn.Module, policy: Policy) -> nn.Module:
    """Makes a searched model the fixed-precision one of ``policy``, in place, or each
    part of it that was quantized by itself.

    Statistics of quantizers that are ``per_subnet`` are kept if ``policy`` is the path
    in use, and forgotten otherwise.
    """
    for part in quantized_parts(model):
        _apply(part, policy)
    return model


def _apply(model: nn.Module, policy: Policy) -> None:
    layers = quantized_layers(model)
    policy.check_layers(layers)
    modules = dict(model.named_modules())
    check_skips(modules, policy.layers, 'policy')
    mixed = {n: m for n, m in layers.items() if isinstance(m, MixedLayer)}
    if any(_path(layer) != policy.layers[name] for name, layer in mixed.items()):
        forget_statistics(model)
    for name, layer in mixed.items():
        layer.fix(policy.layers[name])
    for module in modules.values():
        if isinstance(module.__dict__.get('forward'), Skip):
            module.forward.fix()


def forget_statistics(model: nn.Module) -> None:
    """Drops what was calibrated for another net than the one in use."""
    for quantizer in per_subnet(model):
        quantizer.forget()


def _path(layer: MixedLayer) -> Precision | None:
    """The one precision that a layer computes at, if there is one."""
    choice = layer.relaxation.choice if layer.samples else None
    return None if choice is None else layer.candidates[choice]


def fix_layers(
    modules: dict[str, nn.Module],
    precisions: dict[str, Precision],
    quantizers: dict[str, Any],
    key: str,
) -> None:
    """Makes layers those of one precision, and blocks at (0, 0) skipped ones."""
    skipped = check_skips(modules, precisions, key)
    for name, precision in precisions.items():
        float_twin(modules[name])[1].from_float(
            modules[name],
            w_bits=precision.w_bits,
            a_bits=precision.a_bits,
            **quantizers,
        )
    for block, layer in skipped.items():
        Skip(modules[block], modules[layer])


def still_there(names: Iterable[str], model: nn.Module) -> list[str]:
    """Those of the layers that ``model`` has: a subnet leaves some out."""
    modules = dict(model.named_modules())
    return [n for n in names if n in modules]
