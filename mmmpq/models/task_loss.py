"""The task loss of a model."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

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
