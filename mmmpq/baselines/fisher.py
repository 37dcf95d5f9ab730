"""Quantization errors weighted by the gradients of the float net's loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel

from mmmpq.baselines.measurements import Measurements
from mmmpq.baselines.probe import Probe, input_errors, weight_errors
from mmmpq.layers import open_checkpoints
from mmmpq.models.task_loss import images_of
from mmmpq.search.space import SearchSpace


def measure(
    model: BaseModel,
    space: SearchSpace,
    batches: Sequence[Any],
    cache: Measurements | None = None,
    step: Callable[[int], None] | None = None,
    labels: bool = True,
) -> list[np.ndarray]:
    """What each candidate of each group adds to the loss, from gradients alone.

    With the gradients g of the mean loss of B samples with respect to the weights W
    and the inputs x of each layer l of the group, and Q at the candidate's widths::

        Ω_g = ½ B Σ_l [ Σ g_W² (Q(W_l) - W_l)² + Σ g_x² (Q(x_l) - x_l)² ]

    the diagonal of the empirical Fisher matrix in place of the Hessian: one pass of
    each batch gives all groups and candidates. The layers compute in float, BatchNorm
    with its running statistics. A skipped block has Q(W) = 0, and inputs without error.

    Source: Fisher-weighted errors as of BRECQ: Pushing the Limit of Post-Training
    Quantization by Block Reconstruction, 2021, arXiv 2102.05426, of layers here.

    Args:
        model: A supernet with the weights of a float net, calibrated.
        space: Its groups.
        batches: Batches of a dataloader, not preprocessed.
        cache: Takes the values of each batch; what it holds is not computed again.
        step: Called with the number of batches that are done.
        labels: Whether the loss is the task's; else it is the distance of the outputs
            (:func:`mmmpq.baselines.probe.own_loss`), and the model may be any.

    Returns:
        For each group Ω of every candidate (m,), float64, a mean over the batches.

    Raises:
        ValueError: There is no batch, or a value is not finite.
    """
    if not batches:
        raise ValueError('batches: found none; at least one is needed')
    cache = Measurements() if cache is None else cache
    names = [n for group in space.groups for n in group.layers]
    with Probe(model, names, labels) as probe, open_checkpoints(recompute=False):
        for i, batch in enumerate(batches):
            if f'batch {i}' not in cache:
                harms = _of_batch(probe, batch)
                if not all(np.isfinite(h).all() for h in harms.values()):
                    raise ValueError(
                        'fisher: a gradient is not finite; check the loss of the float '
                        'checkpoint on these batches'
                    )
                cache[f'batch {i}'] = {n: h.tolist() for n, h in harms.items()}
            if step is not None:
                step(i + 1)
    each = [cache[f'batch {i}'] for i in range(len(batches))]
    return [
        sum(np.mean([np.array(harms[n]) for harms in each], axis=0) for n in g.layers)
        for g in space.groups
    ]


def _of_batch(probe: Probe, batch: Any) -> dict[str, np.ndarray]:
    """Ω of each layer and candidate."""
    loss, blocks = probe.at(batch)(None)
    flat = [x for block in blocks for x in block]
    grads = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    slopes = [[next(grads) for _ in block] for block in blocks]
    size = len(images_of(batch))
    count = len(probe.layers)
    harms = {}
    for i, (name, layer) in enumerate(probe.layers.items()):
        inputs = blocks[count + i], slopes[count + i]
        harm = weight_errors(layer, *slopes[i]) + input_errors(layer, *inputs)
        harms[name] = 0.5 * size * harm
    return harms
