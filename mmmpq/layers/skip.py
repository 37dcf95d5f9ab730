"""Residual blocks that a search may leave out: the 0-bit candidate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.layers.base import Mode, QuantizedLayer
from mmmpq.layers.idle import with_idle
from mmmpq.layers.inputs import first_input
from mmmpq.layers.shares import shares
from mmmpq.policy import SKIP


class Skip:
    """The forward of a block whose group has the candidate (0, 0): p_0 x + (1 - p_0) f.

    f is the block itself, whose layers mix the other candidates by p_j / (1 - p_0).
    With mixing 'sampled' it is x, or f, whichever was drawn; in an architecture step
    the gradient of that sum passes straight through to p. In a net of fixed precision
    it is x. Float mode runs the block, so that a profile counts its layers.

    It stands in the block's place for an attribute ``forward``: class, hooks, children
    and state dict of the block stay what they were. A block that ends in a ReLU, as
    ResNet's, would return ReLU(x) if its branch gave zeros; that is x where x comes
    from a ReLU, as it does in between such blocks.

    Source: Mixed Precision Quantization of ConvNets via Differentiable Neural
    Architecture Search, 2018, arXiv 1812.00090.

    Args:
        block: A residual block with an identity shortcut.
        layer: One of its quantized layers, which tells how to mix.
    """

    def __init__(self, block: nn.Module, layer: QuantizedLayer) -> None:
        self.block = block
        self.layer = layer
        block.forward = self
        if self.fixed:
            block.requires_grad_(False)  # DDP waits for what takes part in no forward

    @property
    def fixed(self) -> bool:
        return getattr(self.layer, 'precision', None) == SKIP

    def fix(self) -> None:
        """Follows its layers, whose precisions have been fixed, and so the block."""
        if self.fixed:
            self.block.requires_grad_(False)
        else:
            del self.block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        mode = self.layer.mode
        if self.fixed and mode is not Mode.FLOAT:
            return first_input(args, kwargs)
        block = partial(type(self.block).forward, self.block, *args, **kwargs)
        if mode is not Mode.QUANTIZED:
            return block()
        return self._mixed(first_input(args, kwargs), block)

    @torch.compiler.disable
    def _mixed(self, x: Tensor, block: Callable[[], Tensor]) -> Tensor:
        relaxation, path = self.layer.relaxation, self.layer.path
        if path is not None:
            if path != relaxation.skip:
                return block()
            if torch.is_grad_enabled():
                return with_idle(x, self.block.parameters())
            return x
        share = shares(relaxation, self.layer.samples).block[relaxation.skip]
        return share * x + (1 - share) * block()
