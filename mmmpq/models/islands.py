"""Tensors between layers, quantized in training as a runtime's file has them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmmpq.layers import Island, Islands, QuantLayer, quantized_layers
from mmmpq.layers.island import BITS
from mmmpq.policy import some_of
from mmmpq.quantizers import (
    LinearQuantizer,
    LSQPlusQuantizer,
    LSQQuantizer,
    Quantizer,
)
from mmmpq.registry import FINDERS


class Found(NamedTuple):
    """Tensors of one grid in a file for a runtime.

    Attributes:
        name: Of the first, in the file.
        places: Where a forward makes those of them that hold all values, as of
            :class:`mmmpq.layers.watch.Watch`; empty: that is not known.
        readers: The layers that quantize one of them.
        measured: Whether others than layers read one.
        type: Of the file's integers: 'uint8', 'int8' or 'by sign'.
    """

    name: str
    places: tuple[str, ...]
    readers: tuple[str, ...]
    measured: bool
    type: str


class Int8Quantizer(LinearQuantizer):
    """Signed levels, -128 to 127, whatever the signs of what it has seen."""

    lowest = True

    def calibrate(self, x: Tensor) -> None:
        flat = x.detach().flatten()
        super().calibrate(torch.cat([flat, -flat]))


def trained_target(model: nn.Module) -> str | None:
    """The runtime that ``model`` has islands for, if it has any."""
    return getattr(getattr(model, 'islands', None), 'target', None)


def add_islands(model: nn.Module, target: str | Mapping[str, Any]) -> None:
    """Gives ``model`` quantizers for the tensors that a file for ``target`` quantizes
    between layers, in place; what the forward computes then is what the file does.

    They are found once, in a dry export of a copy. One at 8 bits stands behind each
    such tensor, with a learned range. Layers of 8 bits read its grid: where their
    quantizers learn a range, all have one, and the tensor takes it.

    Args:
        model: Of fixed precision; of a search, which says so, tensors stay float.
        target: Name of a runtime; or that with what was found, as
            ``model.quantized_with['target']`` has it, which needs no dry export.

    Raises:
        ValueError: There is none of that name, it lacks a width, the net cannot be
            exported, or the packages of the extra `deploy` are missing.
    """
    layers = quantized_layers(model)
    found: Sequence[Found] | None
    known = isinstance(target, Mapping)
    if known:
        found = [Found(*map(_tuples, each)) for each in target['found']]
        target = target['name']
    else:
        found = FINDERS.get('islands')(model, target)
    if found is None:
        print_log(
            'quant.target: tensors between layers stay float in a search; they are '
            'quantized in the fine-tuning of its policy',
            logger='current',
        )
        return
    model.quantized_with['target'] = dict(name=target, found=list(map(list, found)))
    lost = [each.name for each in found if not each.places]
    found = [each for each in found if each.places]
    sharing = [
        [layers[n] for n in each.readers if _may_share(layers[n])] for each in found
    ]
    for readers in sharing:
        _tie(readers, layers)
    islands: dict[str, Island] = {}
    for each, readers in zip(found, sharing, strict=True):
        own = {layers[n].a_quantizer for n in each.readers}
        if each.measured or len(own) > 1:
            new = None if readers else _quantizer(each.type).to(_device(model))
            island = Island(new, readers[0] if readers else None)
            islands.update(dict.fromkeys(each.places, island))
    model.islands = Islands(target, islands)
    model.islands.attach(model)
    model.register_forward_pre_hook(model.islands.attach)
    if known:
        return
    count = len(model.islands)
    message = f'quant.target {target}: {count} tensors between layers have 8 bits'
    if lost:
        message += f'; these stay float until the export: {some_of(lost)}'
    print_log(message, logger='current')


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _may_share(layer: QuantLayer) -> bool:
    """Whether its quantizer of inputs may be that of a tensor that others read, too."""
    quantizer = layer.a_quantizer
    learned = getattr(quantizer, 'learned', isinstance(quantizer, LSQQuantizer))
    return layer.precision.a_bits == BITS and learned


def _tie(readers: Sequence[QuantLayer], layers: Mapping[str, QuantLayer]) -> None:
    """Gives all readers, and who has theirs already, the quantizer of the first."""
    quantizers = {layer.a_quantizer for layer in readers}
    for layer in layers.values():
        if layer.a_quantizer in quantizers:
            layer.a_quantizer = readers[0].a_quantizer
    for quantizer in quantizers:
        quantizer.lowest = True


def _quantizer(kind: str) -> Quantizer:
    if kind == 'uint8':
        return LSQPlusQuantizer((BITS,), 'activation')
    if kind == 'int8':
        return Int8Quantizer((BITS,), 'activation')
    quantizer = LinearQuantizer((BITS,), 'activation')
    quantizer.lowest = True
    return quantizer


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
