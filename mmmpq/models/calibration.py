"""Quantizer ranges and BatchNorm statistics from a few batches."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine import dist
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import calibrating
from mmmpq.quantizers import Quantizer


@torch.no_grad()
def run_batches(model: BaseModel, batches: Iterable[Any]) -> None:
    """Passes batches of a train dataloader through ``model`` as training would."""
    for batch in batches:
        model._run_forward(model.data_preprocessor(batch, True), mode='loss')


def calibrate(model: BaseModel, batches: Iterable[Any]) -> None:
    """Fits signs and ranges of quantizers that have none to what the float layers see.

    The model is in train mode meanwhile, as a detector computes no loss otherwise;
    BatchNorm's running statistics are left as they were. With several processes, rank 0
    decides for all.

    Args:
        model: A quantized toolbox model, unwrapped.
        batches: Batches of its train dataloader.
    """
    was_training = model.training
    model.train()
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with calibrating(model):
            run_batches(model, batches)
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
        model.train(was_training)
    for quantizer in model.modules():
        if isinstance(quantizer, Quantizer):
            for tensor in [*quantizer.parameters(), *quantizer.buffers()]:
                dist.broadcast(tensor.data, src=0)
            quantizer.sync_sign()


@torch.no_grad()
def recalibrate_batchnorm(model: BaseModel, batches: Iterable[Any]) -> None:
    """Re-estimates BatchNorm's running statistics as true averages over ``batches``.

    Layers whose statistics are frozen (``norm_eval``) keep theirs.

    Args:
        model: A toolbox model, unwrapped.
        batches: Batches of its train dataloader.
    """
    was_training = model.training
    model.train()
    norms: list[nn.Module] = [norm for norm in _norms(model) if norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    try:
        run_batches(model, batches)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)


def _norms(model: nn.Module) -> list[nn.Module]:
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
