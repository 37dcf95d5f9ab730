"""How the logits of a search step: their gradients, optimizer and schedule."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import Tensor, nn


def build_optimizer(
    cfg: dict, logits: Sequence[nn.Parameter], clip_grad: dict | None
) -> OptimWrapper:
    """The optimizer of the logits, whatever the one of the weights is."""
    optimizer = OPTIMIZERS.build(dict(cfg, params=list(logits)))
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
    cfg = dict(cfg)
    by_epoch = cfg.setdefault('by_epoch', False)
    if cfg['type'].endswith('CosineAnnealingLR'):
        cfg.setdefault('T_max', math.ceil(steps / per_epoch if by_epoch else steps))
    if by_epoch:
        epoch_length = max(1, round(per_epoch))
        cfg.update(convert_to_iter_based=True, epoch_length=epoch_length)
    return PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=optimizer))


def set_gradients(logits: Sequence[nn.Parameter], on: bool) -> None:
    for each in logits:
        each.requires_grad_(on)


def loss_scale(wrapper: OptimWrapper) -> float:
    """The present scale of an fp16 loss, 1 without one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def mean_gradients(
    logits: Sequence[nn.Parameter], grads: Sequence[Tensor | None], scale: float
) -> list[Tensor] | None:
    """Gradients without their loss scale, averaged over the processes.

    Returns:
        None where fp16 overflowed: the loss scaler is about to shrink.
    """
    flat = torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).float().flatten()
            for p, g in zip(logits, grads, strict=True)
        ]
    )
    dist.all_reduce(flat, op='mean')
    flat /= scale
    if scale != 1.0 and not bool(torch.isfinite(flat).all()):
        return None
    parts = flat.split([p.numel() for p in logits])
    return [g.view_as(p).to(p.dtype) for p, g in zip(logits, parts, strict=True)]


def step_logits(
    optimizer: OptimWrapper, logits: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> None:
    """One step by ``grads``, after which the logits hold no gradient."""
    for each, grad in zip(logits, grads, strict=True):
        each.grad = grad
    set_gradients(logits, True)  # clip_grad passes by what does not require them
    optimizer.step()
    set_gradients(logits, False)
    for each in logits:
        each.grad = None
