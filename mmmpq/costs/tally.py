"""Sums over the calls of every layer, gathered by forward hooks."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from mmmpq.costs.layer_types import macs_of


class Call(NamedTuple):
    """Sums over calls of one layer; ``sizes`` counts inputs by spatial size."""

    macs: int
    activations: int
    calls: int
    sizes: Counter

    def grow(self, before: 'Call', steps: int) -> 'Call':
        """Extrapolate linearly: ``self + steps * (self - before)``."""
        numbers = (
            now + steps * (now - then)
            for now, then in zip(self[:3], before[:3], strict=True)
        )
        sizes = Counter(
            {
                size: count + steps * (count - before.sizes[size])
                for size, count in self.sizes.items()
            }
        )
        return Call(*numbers, sizes)


class Tally:
    """The forward hook of all layers, and what it has counted so far by name."""

    def __init__(self) -> None:
        self.calls = {}

    def watch(self, layers: Mapping[nn.Module, str]) -> list[Any]:
        """Hooks that record every call of the layers, to be removed afterwards."""
        return [
            module.register_forward_hook(partial(self.record, name), with_kwargs=True)
            for module, name in layers.items()
        ]

    def record(self, name, module, args, kwargs, output) -> None:
        inputs = tuple(args) + tuple(kwargs.values())
        macs, size, images, activations = macs_of(module, inputs, kwargs, output)
        self.add(name, Call(macs, activations, 1, Counter({size: images})))

    def add(self, name: str, call: Call) -> None:
        old = self.calls.get(name)
        if old is not None:
            numbers = (a + b for a, b in zip(old[:3], call[:3], strict=True))
            call = Call(*numbers, old.sizes + call.sizes)
        self.calls[name] = call

    @contextlib.contextmanager
    def apart(self) -> Iterator[dict]:
        """Count into a dict of its own."""
        before, self.calls = self.calls, {}
        try:
            yield self.calls
        finally:
            self.calls = before
