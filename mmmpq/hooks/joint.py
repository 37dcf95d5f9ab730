"""Joint mode: the logits step on the batches of the weights, and with them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmpq.losses import Terms


class JointGradients:
    """The task gradients of the logits, taken from the backward pass of the weights.

    They are taken away before the weights' optimizer steps, so that it clips and counts
    its own alone, and summed over the batches that one of its steps accumulates.

    Args:
        logits: The logits of a search, of which these hooks stay registered.
    """

    def __init__(self, logits: Sequence[nn.Parameter]) -> None:
        self.logits = list(logits)
        self._grads: list[Tensor | None] = [None] * len(self.logits)
        self._losses: list[Tensor] = []
        for i, each in enumerate(self.logits):
            before = each.requires_grad
            each.requires_grad_(True)  # or it takes no hook
            each.register_post_accumulate_grad_hook(self._take(i))
            each.requires_grad_(before)

    def _take(self, index: int):
        def hook(param: Tensor) -> None:
            grad, before = param.grad, self._grads[index]
            self._grads[index] = grad if before is None else before + grad
            param.grad = None

        return hook

    def note(self, loss: Tensor) -> None:
        """Keeps the task loss of a batch, for a factor of it."""
        self._losses.append(loss.detach().float())

    def of(self, terms: Terms, scale: float) -> list[Tensor | None]:
        """The gradient of F · L + P since the last time: F ∇L + L ∇F + ∇P.

        L is the mean loss of the batches noted; ∇L, the sum of what they left, comes
        with the loss scale in it.

        Args:
            terms: F and P.
            scale: Of an fp16 loss; the gradient returned has it, too.
        """
        task, self._grads = self._grads, [None] * len(self.logits)
        losses, self._losses = self._losses, []
        rest, factor = terms.penalty, terms.factor
        if isinstance(factor, Tensor):
            rest = rest + factor * torch.stack(losses).mean()
            factor = factor.detach()
        own: Sequence[Tensor | None] = [None] * len(task)
        if rest.requires_grad:
            own = torch.autograd.grad(rest * scale, self.logits, allow_unused=True)
        return [
            g if t is None else factor * t.float() + (0 if g is None else g)
            for t, g in zip(task, own, strict=True)
        ]
