"""What a model makes of a batch of a dataloader: its task loss, its raw outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmmpq.layers import leaves
from mmmpq.randomness import isolated_randomness


def task_loss(model: BaseModel, batch: Any) -> Tensor:
    """The loss of a batch of a dataloader, a scalar."""
    data = model.data_preprocessor(batch, True)
    return model.parse_losses(model._run_forward(data, mode='loss'))[0]


@torch.no_grad()
def mean_loss(model: BaseModel, batches: Sequence[Any]) -> float:
    """Task loss, a mean over ``batches``; random numbers are the same in every call."""
    total = 0.0
    with isolated_randomness(0):
        for batch in batches:
            total = total + task_loss(model, batch).double()
    return float(total) / len(batches)


def raw_outputs(model: nn.Module, batch: Any, training: bool = False) -> Any:
    """What ``mode='tensor'`` gives for a batch, or what a model that is no toolbox's
    gives for its input. Random numbers are the same in every call.

    Args:
        model: In any mode.
        batch: Of a dataloader; without ``training`` it needs no labels.
        training: Whether it is preprocessed as in training.
    """
    if not isinstance(model, BaseModel):
        return model(batch)
    with isolated_randomness(0):
        data = model.data_preprocessor(batch, training)
        return model._run_forward(data, mode='tensor')


def output_tensors(
    model: nn.Module, batch: Any, training: bool = False
) -> list[Tensor]:
    """The tensors among :func:`raw_outputs`."""
    out = leaves(raw_outputs(model, batch, training))
    return [part for part in out if isinstance(part, Tensor)]


def are_logits(outputs: Sequence[Tensor]) -> bool:
    """Whether these tensors are the (N, K) logits of a classifier alone."""
    return len(outputs) == 1 and outputs[0].dim() == 2


def images_of(batch: Any) -> Any:
    """The images of a batch of a dataloader, or of what is one itself."""
    if isinstance(batch, Tensor):
        return batch
    return batch['inputs'] if isinstance(batch, dict) else batch[0]
