"""Quantizer ranges and BatchNorm statistics from a few batches."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import calibrating, quantizing
from mmmpq.quantizers import Quantizer, per_subnet


@torch.no_grad()
def run_batches(model: nn.Module, batches: Iterable[Any]) -> None:
    """Passes batches of a train dataloader through ``model`` as training would; one
    that is no toolbox model is called with them."""
    for batch in batches:
        if isinstance(model, BaseModel):
            model._run_forward(model.data_preprocessor(batch, True), mode='loss')
        else:
            model(batch)


def calibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Fits signs and ranges of quantizers that have none to what the float layers see.

    The model is in train mode meanwhile, as a detector computes no loss otherwise;
    BatchNorm's running statistics are left as they were. With several processes, rank 0
    decides for all.

    Args:
        model: A quantized model, unwrapped.
        batches: Batches of its train dataloader; of what is no toolbox model, inputs.
    """
    with _training(model), _frozen(_norms(model)), calibrating(model):
        run_batches(model, batches)
    for quantizer in model.modules():
        if isinstance(quantizer, Quantizer):
            for tensor in [*quantizer.parameters(), *quantizer.buffers()]:
                dist.broadcast(tensor.data, src=0)
            quantizer.sync_host()


@torch.no_grad()
def calibrate_blank(model: nn.Module) -> None:
    """Gives a range to inputs that were zero whenever they came, which is said.

    Called after a training, or where there is none: the values of a DETR's first
    decoder layer are zero for good, and any range serves them.
    """
    names = []
    for name, layer in quantizing(model).items():
        quantizer = layer.a_quantizer
        if quantizer.blank and not quantizer.calibrated:
            quantizer.calibrate(torch.ones(1, device=quantizer.signed.device))
            names.append(name)
    if names:
        print_log(
            'nothing but zeros reached these layers; the range of their input is that '
            f'of ones: {", ".join(names)}',
            logger='current',
        )


@torch.no_grad()
def calibrate_subnet(
    model: nn.Module, batches: Iterable[Any], batchnorm: bool = True
) -> None:
    """Re-estimates what depends on the net that is active, as averages over batches.

    These are BatchNorm's running mean and (unbiased) variance and the statistics of
    quantizers that are ``per_subnet`` (:class:`mmmpq.quantizers.BatchQuantizer`), all
    from the same passes: each value is the mean of those of every call of its layer, in
    all processes. BatchNorm whose statistics are frozen (``norm_eval``) keeps them, as
    does what no call reached.

    Args:
        model: A model, unwrapped: a supernet with the subnet that is active, or one of
            fixed precision.
        batches: As of :func:`calibrate`.
        batchnorm: Whether to re-estimate BatchNorm.
    """
    ranges = per_subnet(model)
    with _training(model):
        norms = [norm for norm in _norms(model) if norm.training]
        for quantizer in ranges:
            quantizer.gathered = []
        try:
            with _averaging(norms) if batchnorm else _frozen(norms):
                run_batches(model, batches)
        finally:
            gathered = [quantizer.gathered for quantizer in ranges]
            for quantizer in ranges:
                quantizer.gathered = None
    for quantizer, values in zip(ranges, gathered, strict=True):
        if values:
            quantizer.set_statistics(torch.stack(values).mean(0))
    _average_over_processes(norms if batchnorm else [], ranges, gathered)


def _average_over_processes(norms, ranges, gathered) -> None:
    """Weighs each process by the calls that it has seen."""
    if dist.get_world_size() == 1:
        return
    counted = [(norm.running_mean, norm.num_batches_tracked) for norm in norms]
    counted += [(norm.running_var, norm.num_batches_tracked) for norm in norms]
    counted += [
        (quantizer.statistics, torch.tensor(len(values)).to(quantizer.signed.device))
        for quantizer, values in zip(ranges, gathered, strict=True)
    ]
    counts = torch.stack([count for _, count in counted]).float()
    sums = [mean * count for (mean, _), count in zip(counted, counts, strict=True)]
    flat = torch.cat([counts, *sums])
    dist.all_reduce(flat)
    counts, *sums = flat.split([len(counts), *map(len, sums)])
    for (mean, _), total, count in zip(counted, sums, counts, strict=True):
        mean.copy_(torch.where(count > 0, total / count, mean))
    for quantizer, count in zip(ranges, counts[2 * len(norms) :], strict=True):
        if count > 0:
            quantizer.set_statistics(quantizer.statistics)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _frozen(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Within it running statistics stay as they are."""
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


@contextmanager
def _averaging(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Within it running statistics become averages over calls."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.num_batches_tracked.zero_()  # the first call takes the place of the old
        norm.momentum = None  # a cumulative average
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _norms(model: nn.Module) -> list[nn.Module]:
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
