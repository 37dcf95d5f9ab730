"""The net of one choice, inside the supernet."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mmmpq.layers import MixedLayer, quantized_layers, quantized_part
from mmmpq.search.space import SearchSpace


@contextlib.contextmanager
def chosen(
    model: nn.Module, space: SearchSpace, choice: Sequence[int | None]
) -> Iterator[None]:
    """Within it each group computes at its candidate of ``choice``, or in float if that
    is None, and so do the fixed layers if any group is; the model is in train mode.
    Afterwards modes and buffers (BatchNorm's, slow averages) are as before."""
    layers = quantized_layers(quantized_part(model))
    modes = [layer._mode for layer in layers.values()]
    mixed = [layer for layer in layers.values() if isinstance(layer, MixedLayer)]
    mixings = [layer.mixing for layer in mixed]
    drawn = [g.relaxation.choice for g in space.groups]
    buffers = [(b, b.clone()) for b in model.buffers()]
    was_training = model.training
    model.train()
    if None in choice:
        for layer in layers.values():
            layer._mode = 'float'
    for layer in mixed:
        layer.mixing = 'sampled'
    for group, j in zip(space.groups, choice, strict=True):
        if j is not None:
            group.take(j)
            for name in group.layers:
                layers[name]._mode = None
    try:
        yield
    finally:
        for layer, mode in zip(layers.values(), modes, strict=True):
            layer._mode = mode
        for layer, mixing in zip(mixed, mixings, strict=True):
            layer.mixing = mixing
        for group, j in zip(space.groups, drawn, strict=True):
            group.take(j)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        model.train(was_training)
