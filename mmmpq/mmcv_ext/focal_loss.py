"""Focal losses over all logits of a batch, before they are reduced.

*Focal Loss for Dense Object Detection*, 2017, arXiv 1708.02002. p is the probability,
FL = -α (1 - p)^γ log p of the class that is there, and for the sigmoid
FL = -(1 - α) p^γ log(1 - p) of every other one. Logarithms are of numbers of at least
the smallest normal float32.
"""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the loss of every logit.

    Args:
        input: Logits (N, C).
        target: Classes (N,); C (or any number that is no class) is background.
        weight: Factors of the classes (C,), or empty.
        output: (N, C).
    """
    p, there = _sigmoid(input, target)
    positive = (1 - p) ** gamma * p.clamp(min=TINY).log() * alpha
    negative = p**gamma * (1 - p).clamp(min=TINY).log() * (1 - alpha)
    output.copy_(-torch.where(there, positive, negative) * _of(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the derivative of every loss by its logit to ``grad_input`` (N, C)."""
    p, there = _sigmoid(input, target)
    log_p, log_q = p.clamp(min=TINY).log(), (1 - p).clamp(min=TINY).log()
    positive = (1 - p) ** gamma * (1 - p - gamma * p * log_p) * alpha
    negative = p**gamma * (gamma * (1 - p) * log_q - p) * (1 - alpha)
    grad_input.copy_(
        -torch.where(there, positive, negative) * _of(weight, target)[:, None]
    )


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the loss of every row.

    Args:
        input: Probabilities (N, C), the softmax of the logits.
        target: Classes (N,); a negative one counts nothing.
        weight: Factors of the classes (C,), or empty.
        output: (N,).
    """
    p = _of_class(input, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log()
    output.copy_((loss * _of(weight, target)).masked_fill(target < 0, 0))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the derivative by the logits to ``grad_input`` (N, C).

    ``buff`` (N,) takes b = p · dFL/dp: that by logit c is b · (1[c = t] - p_c).
    """
    p = _of_class(input, target)
    slope = gamma * (1 - p) ** (gamma - 1) * p * p.clamp(min=TINY).log()
    slope = alpha * (slope - (1 - p) ** gamma) * _of(weight, target)
    slope = slope.masked_fill(target < 0, 0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_one_hot(input, target).to(slope) - input))


def _sigmoid(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return _wide(input).sigmoid(), _one_hot(input, target)


def _one_hot(input: Tensor, target: Tensor) -> Tensor:
    """Whether class c is that of row n, (N, C)."""
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _wide(x: Tensor) -> Tensor:
    """At least float32: powers and logarithms of half precision are too coarse."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _of_class(input: Tensor, target: Tensor) -> Tensor:
    return _wide(input).gather(1, target.clamp(min=0)[:, None])[:, 0]


def _of(weight: Tensor, target: Tensor) -> Tensor:
    """The factor of every row (N,); 1 without factors and for what is no class."""
    if not weight.numel():
        return torch.ones(len(target), device=target.device)
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, _wide(weight)[target.clamp(0, len(weight) - 1)], 1)
