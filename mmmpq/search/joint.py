"""Joint mode: the logits step on the batches of the weights, and with them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmpq.layers import Handed
from mmmpq.search.logits import learning, task_gradient


class JointGradients:
    """The task gradient of the logits, taken from the backward pass of the weights.

    What layers leave at the logits themselves is taken away before the weights'
    optimizer steps, so that it clips and counts its own alone. All is summed over the
    batches that one of its steps accumulates.

    Args:
        logits: The logits of a search, of which these hooks stay registered.
    """

    def __init__(self, logits: Sequence[nn.Parameter]) -> None:
        self.logits = list(logits)
        self._direct: list[Tensor | None] = [None] * len(self.logits)
        self._sum: Tensor | None = None
        self._losses: list[Tensor] = []
        with learning(self.logits):  # or they take no hook
            for i, each in enumerate(self.logits):
                each.register_post_accumulate_grad_hook(self._take(i))

    def _take(self, index: int):
        def hook(param: Tensor) -> None:
            grad, before = param.grad, self._direct[index]
            self._direct[index] = grad if before is None else before + grad
            param.grad = None

        return hook

    def note(self, handed: Handed, loss: Tensor | None = None) -> None:
        """Keeps what the backward pass of a batch left.

        Args:
            handed: What its layers were handed.
            loss: Its task loss, for a factor of it.
        """
        direct, self._direct = self._direct, [None] * len(self.logits)
        at_handed = [leaf.grad for leaf in handed.leaves]
        grad = task_gradient(self.logits, handed, at_handed, direct)
        if grad is not None:
            self._sum = grad if self._sum is None else self._sum + grad
        if loss is not None:
            self._losses.append(loss.detach().float())

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradient since the last time (L,), with the loss scale in it, and the
        mean of the losses noted."""
        grad, self._sum = self._sum, None
        losses, self._losses = self._losses, []
        return grad, torch.stack(losses).mean() if losses else None
