"""How the logits of a search step: their gradients, optimizer and schedule."""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import dist
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import Tensor, nn

from mmmpq.layers import Handed
from mmmpq.losses import Terms
from mmmpq.registry import class_of
from mmmpq.user_config import type_name


def build_optimizer(
    cfg: dict, logits: Sequence[nn.Parameter], clip_grad: dict | None
) -> OptimWrapper:
    """The optimizer of the logits, whatever the one of the weights is.

    One of torch's steps all of them in a few operations (``foreach``).
    """
    kind = class_of(OPTIMIZERS, cfg.get('type'), 'type')
    cfg = dict(cfg, params=list(logits))
    if 'foreach' in inspect.signature(kind).parameters and not cfg.get('fused'):
        cfg.setdefault('foreach', True)
    optimizer = OPTIMIZERS.build(cfg)
    wrapper = OptimWrapper(optimizer, clip_grad=clip_grad and dict(clip_grad))
    wrapper.grad_name = 'arch_grad_norm'
    return wrapper


def build_scheduler(
    cfg: dict | None, optimizer: OptimWrapper, steps: float, per_epoch: float
) -> Any:
    """The schedule of the logits' learning rate, which steps with them.

    Args:
        cfg: Its config, in steps; with ``by_epoch=True`` in epochs; or None.
        optimizer: Of :func:`build_optimizer`.
        steps: That the logits take in the whole search, default of a cosine's T_max.
        per_epoch: Steps that they take in an epoch.
    """
    if cfg is None:
        return None
    class_of(PARAM_SCHEDULERS, cfg.get('type'), 'type')
    cfg = dict(cfg)
    by_epoch = cfg.setdefault('by_epoch', False)
    if type_name(cfg) == 'CosineAnnealingLR':
        cfg.setdefault('T_max', math.ceil(steps / per_epoch if by_epoch else steps))
    if by_epoch:
        epoch_length = max(1, round(per_epoch))
        cfg.update(convert_to_iter_based=True, epoch_length=epoch_length)
    return PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=optimizer))


@contextmanager
def learning(logits: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within it gradients reach the logits, and layers take a step of theirs."""
    for each in logits:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in logits:
            each.requires_grad_(False)


def loss_scale(wrapper: OptimWrapper, device: torch.device) -> Tensor | float:
    """The present scale of an fp16 loss, where it is; the number 1.0 without one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return 1.0 if scaler is None else scaler.scale(torch.ones((), device=device))


def join(logits: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> Tensor:
    """Gradients of all groups as one tensor (L,); None is 0."""
    return torch.cat(
        [
            torch.zeros_like(p) if g is None else g.float()
            for p, g in zip(logits, grads, strict=True)
        ]
    )


def task_gradient(
    logits: Sequence[nn.Parameter],
    handed: Handed,
    at_handed: Sequence[Tensor | None],
    at_logits: Sequence[Tensor | None],
) -> Tensor | None:
    """The gradient of a loss that has passed through the model (L,).

    Args:
        logits: The logits.
        handed: What its layers were handed.
        at_handed: The loss's gradient there.
        at_logits: That of layers which were handed nothing.
    """
    grad = handed.through(at_handed)
    if any(g is not None for g in at_logits):
        direct = join(logits, at_logits)
        grad = direct if grad is None else grad + direct
    return grad


def with_penalties(
    logits: Sequence[nn.Parameter],
    handed: Handed,
    task: Tensor | None,
    terms: Terms,
    loss: Tensor | None,
    scale: Tensor | float,
) -> Sequence[Tensor]:
    """The gradient of F · L + P by group: F ∇L + L ∇F + ∇P.

    Args:
        logits: The logits.
        handed: What the layers, and the penalties, were handed.
        task: ∇L, times ``scale``; None is 0.
        terms: F and P.
        loss: L, not needed where F is the number 1.
        scale: Of an fp16 loss; the gradient returned has it, too.
    """
    rest, factor = terms.penalty, terms.factor
    if isinstance(factor, Tensor):
        rest = rest + factor * loss.detach()
        factor = factor.detach()
    total = torch.zeros_like(torch.cat(logits)) if task is None else factor * task
    if rest.requires_grad:
        single = handed.theta is not None
        inputs = [handed.theta] if single else logits
        own = torch.autograd.grad(rest * scale, inputs, allow_unused=True)
        total = total + (own[0] if single else join(logits, own))
    return total.split([p.numel() for p in logits])


def mean_gradients(
    logits: Sequence[nn.Parameter],
    grads: Sequence[Tensor | None],
    scale: Tensor | float,
) -> Sequence[Tensor] | None:
    """Gradients without their loss scale, averaged over the processes.

    Returns:
        None where fp16 overflowed: the loss scaler is about to shrink.
    """
    flat = join(logits, grads)
    dist.all_reduce(flat, op='mean')
    flat /= scale
    scaled = isinstance(scale, Tensor) or scale != 1.0
    if scaled and not bool(torch.isfinite(flat).all()):
        return None
    parts = flat.split([p.numel() for p in logits])
    return [g.to(p.dtype) for p, g in zip(logits, parts, strict=True)]


def step_logits(
    optimizer: OptimWrapper, logits: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> None:
    """One step by ``grads``, after which the logits hold no gradient."""
    for each, grad in zip(logits, grads, strict=True):
        each.grad = grad
    with learning(logits):  # clip_grad passes by what does not require them
        optimizer.step()
    for each in logits:
        each.grad = None
