"""The net of one choice, inside the supernet."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from mmmpq.layers import (
    MixedLayer,
    Mode,
    computing,
    quantized_layers,
    quantized_part,
)
from mmmpq.search.space import SearchSpace


@contextmanager
def at_choice(
    model: nn.Module, space: SearchSpace, choice: Sequence[int | None]
) -> Iterator[None]:
    """Within it each group computes at its candidate of ``choice``, or in float if that
    is None, and so do the fixed layers if any group is; the model is in train mode.
    Afterwards modes and buffers (BatchNorm's, slow averages) are as before."""
    layers = quantized_layers(quantized_part(model))
    mixed = [layer for layer in layers.values() if isinstance(layer, MixedLayer)]
    mixings = [layer.mixing for layer in mixed]
    paths = [g.relaxation.choice for g in space.groups]
    buffers = [(b, b.clone()) for b in model.buffers()]
    was_training = model.training
    model.train()
    with ExitStack() as modes:
        if None in choice:
            modes.enter_context(computing(layers.values(), Mode.FLOAT))
        for layer in mixed:
            layer.mixing = 'sampled'
        for group, j in zip(space.groups, choice, strict=True):
            if j is not None:
                group.take(j)
                quantized = [layers[name] for name in group.layers]
                modes.enter_context(computing(quantized, Mode.QUANTIZED))
        try:
            yield
        finally:
            for layer, mixing in zip(mixed, mixings, strict=True):
                layer.mixing = mixing
            space.take(paths)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            model.train(was_training)
