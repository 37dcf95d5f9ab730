"""Quantized weights, computed once for as long as they stay the same."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mmmpq.quantizers.functional import saving_is_hooked

# Number of the forward pass that a quantized model is in; 0 outside of one.
_passes = 0
_now = 0


def begin_pass() -> None:
    """A forward pass of a quantized model begins."""
    global _passes, _now
    _passes += 1
    _now = _passes


def end_pass() -> None:
    """It has ended."""
    global _now
    _now = 0


def computed_dtype(weight: Tensor) -> torch.dtype:
    """What autocast, if there is any, makes of a weight in a convolution."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


class QuantizedWeight:
    """The last quantized weight of a layer, as long as it is good.

    In evaluation it is kept until the weight, or what quantizes it, changes; the layer
    forgets it when it is put into training or evaluation mode. In training it is kept
    within one forward pass of the model, for layers that are called several times (a
    head shared over levels): the calls share one node of the graph, and their gradients
    are summed before they go through it. A layer called once keeps nothing, since the
    weight costs about as little to quantize as to read. Nothing is kept where hooks
    on saved tensors are set, as by activation checkpointing.
    """

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.value: Tensor | None = None
        self.shared = False  # whether one pass has called it twice

    def __call__(
        self, make: Callable[[], Tensor], of: Iterable[Tensor], *state: Any
    ) -> Tensor:
        """``make()``, or what it gave when ``of`` and ``state`` were the same."""
        grad = torch.is_grad_enabled()
        if (grad and not _now) or saving_is_hooked():
            return make()
        key = (grad and _now, *state, *((t.data_ptr(), t._version) for t in of))
        if key == self.key:
            if self.value is not None:
                return self.value
            self.shared = True
        value = make()
        self.key = key
        self.value = value if self.shared or not grad else None
        if grad and self.value is not None and value.requires_grad:
            value.register_hook(self._forget)
        return value

    def _forget(self, _: Tensor) -> None:
        self.key = self.value = None

    def __deepcopy__(self, memo: dict) -> 'QuantizedWeight':
        return QuantizedWeight()

    def __reduce__(self) -> tuple:
        return QuantizedWeight, ()


def outputs_first(weight: Tensor, out_dim: int) -> Tensor:
    """A weight with its first dimension and that of the output channels exchanged: as
    quantizers see it; and, of such a one, as its layer holds it."""
    return weight.transpose(0, out_dim).contiguous() if out_dim else weight
