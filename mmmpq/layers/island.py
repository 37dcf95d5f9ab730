"""Tensors between layers that are quantized in the forward of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.layers.inputs import sample
from mmmpq.layers.modes import Mode
from mmmpq.layers.watch import Watch, parts_of
from mmmpq.quantizers import Quantizer

BITS = 8


class Island(nn.Module):
    """A tensor, or some of one grid, at 8 bits.

    Args:
        quantizer: Its own, of activations; or
        reader: a layer that reads it, and whose quantizer of its input is taken.
    """

    mode = Mode.QUANTIZED

    def __init__(
        self, quantizer: Quantizer | None = None, reader: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.own_quantizer = quantizer
        self._reader = [reader]  # in a list, as it is no part of this module

    @property
    def a_quantizer(self) -> Quantizer:
        return self.own_quantizer or self._reader[0].a_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """``x``, of any shape, on the grid; in float mode as it is."""
        if self.mode is Mode.QUANTIZED:
            return self.a_quantizer(x, BITS)
        if self.mode is Mode.RECORDING and x.numel():
            self.recorded.append(sample(x))
        return x

    def calibrate(self, samples: Sequence[Tensor]) -> None:
        """Fits the range to samples, if it has none."""
        if samples and not self.a_quantizer.calibrated:
            self.a_quantizer.calibrate(torch.cat(list(samples)))


class Islands(nn.ModuleDict):
    """The islands of a model, by the first of their places, '/' for its dots.

    Hooks at the modules that make the tensors put them into the forward; neither
    classes nor names of the model change.

    Args:
        target: The runtime that they are for.
        islands: By place, as of :class:`.watch.Watch`; one may be in several.
    """

    def __init__(self, target: str, islands: Mapping[str, Island]) -> None:
        super().__init__()
        self.target = target
        self.key_of: dict[str, str] = {}
        names: dict[Island, str] = {}
        for place, island in islands.items():
            key = names.setdefault(island, place.replace('.', '/'))
            self.key_of[place] = self.key_of.get(place, key)
            self[key] = island
        self.watch = Watch(self._see)
        self.count = -1  # of modules that are watched

    def attach(self, model: nn.Module, *_: Any) -> None:
        """Watches the modules of ``model``, and whatever has come into the place of one
        since, as SyncBatchNorm does."""
        if sum('watched' in vars(module) for module in model.modules()) == self.count:
            return
        owners = {p.partition('[')[0] for p in self.key_of if p.count('[') == 2}
        ours = set(self.modules())
        for name, module, composed in parts_of(model):
            if module not in ours and 'watched' not in vars(module):
                module.watched = True
                self.watch.add(name, module, composed, name in owners)
        self.count = sum('watched' in vars(module) for module in model.modules())

    def _see(self, place: str, x: Tensor) -> Tensor:
        key = self.key_of.get(place)
        return x if key is None else self[key](x)
