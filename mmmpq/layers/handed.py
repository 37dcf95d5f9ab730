"""What a step of a search hands to the layers, and gradients back from there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.layers.probs import Probs
from mmmpq.layers.relaxation import Relaxation


class Handed:
    """What the layers mix with in one step, until :meth:`release`.

    They hold detached copies, at which the backward pass of the model ends: it leaves
    the gradients there, for :meth:`through` to take on to the logits. So one may go
    through the model any number of times.

    Args:
        relaxations: To whose layers it is handed.
        theta: θ, their logits (L,), apart from the parameters; None: nothing is handed,
            and the layers compute from the parameters.
        probs: Of their candidates, with the gradient of ``theta``.

    Attributes:
        leaves: What was handed, all groups in each.
    """

    def __init__(
        self,
        relaxations: Sequence[Relaxation] = (),
        theta: Tensor | None = None,
        probs: Probs | None = None,
    ) -> None:
        self.relaxations, self.theta, self.probs = relaxations, theta, probs
        self.leaves: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def cut(self, output: Tensor) -> Tensor:
        """A copy of ``output`` to hand out."""
        leaf = output.detach().requires_grad_(output.requires_grad)
        self._outputs.append(output)
        self.leaves.append(leaf)
        return leaf

    def through(self, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The gradient of θ (L,), from those of ``leaves``; None if there are none."""
        pairs = zip(self._outputs, grads, strict=True)
        pairs = [(o, g) for o, g in pairs if g is not None]
        if not pairs:
            return None
        outputs, grads = zip(*pairs, strict=True)
        # The penalties go through the same softmax.
        return torch.autograd.grad(outputs, self.theta, grads, retain_graph=True)[0]

    def release(self) -> None:
        """Takes back what was handed."""
        for relaxation in self.relaxations:
            relaxation.handed = {}
