"""BatchNorms that stay: their statistics move as their inputs do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import first_input, float_mode
from mmmpq.models.task_loss import raw_outputs
from mmmpq.post_training.rows import hooked


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms that evaluate by running statistics, by name."""
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_var is not None
    }


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (C,) of (N, C, ...)."""
    flat = x.detach().float().movedim(1, -1).flatten(0, -2)
    return flat.mean(0), flat.var(0, unbiased=False)


@contextmanager
@torch.no_grad()
def rematched(model: nn.Module, batch: Any) -> Iterator[None]:
    """After it, running statistics fit the net as it has become within it.

    With mean μ and variance σ² of what a BatchNorm is given by the float net before (f)
    and by the quantized net after (q), on the same images::

        running_mean += μ_q - μ_f;   running_var *= (σ²_q + ε) / (σ²_f + ε)

    in the order of the net, so that each one sees what those before it give now. The
    statistics themselves are kept, as they are those of the float net's own training:
    to estimate them from a few other images would make it another net.

    Args:
        model: In evaluation mode, with the float weights.
        batch: Of a dataloader.
    """
    norms = norms_of(model)
    before: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def keep(norm: _BatchNorm, args: tuple, kwargs: dict) -> None:
        before.setdefault(norm, moments(first_input(args, kwargs)))

    def mend(norm: _BatchNorm, args: tuple, kwargs: dict) -> None:
        mean, var = before.pop(norm, (None, None))
        if mean is not None:
            now = moments(first_input(args, kwargs))
            norm.running_mean += now[0] - mean
            norm.running_var *= (now[1] + norm.eps) / (var + norm.eps)

    for hook in (keep, mend):
        if hook is mend:
            yield
        handles = [
            norm.register_forward_pre_hook(hook, with_kwargs=True)
            for norm in norms.values()
        ]
        with hooked(handles):
            if norms and hook is keep:
                with float_mode(model):
                    raw_outputs(model, batch)
            elif norms:
                raw_outputs(model, batch)
