"""The task loss of a model on some batches."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel

from mmmpq.randomness import isolated_randomness


@torch.no_grad()
def mean_loss(model: BaseModel, batches: Sequence[Any]) -> float:
    """Task loss, a mean over ``batches``; random numbers are the same in every call."""
    total = 0.0
    with isolated_randomness(0):
        for batch in batches:
            data = model.data_preprocessor(batch, True)
            loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
            total = total + loss.double()
    return float(total) / len(batches)
