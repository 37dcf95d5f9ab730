"""Quantization errors weighted by the Hessian of the float net's loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel

from mmmpq.baselines.hutchinson import (
    NotTwiceDifferentiable,
    relative_error,
    trace_sample,
)
from mmmpq.baselines.measurements import Measurements
from mmmpq.baselines.probe import Probe, input_errors, weight_errors
from mmmpq.layers import open_checkpoints
from mmmpq.search.space import SearchSpace

EXACT, DIFFERENCES = 'double backward', 'finite differences'
# Step of the finite differences. Small ones measure single kinks of ReLUs, this one is
# about what 4 bits move a tensor by.
EPSILON = 0.05
FEWEST = 8  # vectors before the standard error is trusted


@dataclass
class Traces:
    """Mean Hessian traces Tr(H) / n by layer, of its weights and of its input.

    Attributes:
        weights, inputs: By name of the layer.
        vectors: Random vectors that they are means over.
        error: Median over all of them of standard error / |mean|.
        how: How Hessian-vector products were computed.
    """

    weights: dict[str, float]
    inputs: dict[str, float]
    vectors: int
    error: float
    how: str


def measure(
    model: BaseModel,
    space: SearchSpace,
    batches: Sequence[Any],
    vectors: int = 200,
    tolerance: float = 0.1,
    seed: int = 0,
    cache: Measurements | None = None,
    step: Callable[[int, float], None] | None = None,
) -> list[np.ndarray]:
    """HAWQ-V2's perturbation of each group at each candidate.

    With the mean trace of the Hessian of the loss, over the weights W_l and over the
    input x_l of each layer l of the group, and Q at the candidate's widths::

        Ω_g = Σ_l Tr(H_Wl) / n_Wl · ‖Q(W_l) - W_l‖² + Tr(H_xl) / n_xl · ‖Q(x_l) - x_l‖²

    Source: HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks, 2019,
    arXiv 1911.03852. Ours: the input's term is that of a whole batch, whose loss is a
    mean; traces below 0 count as 0; one vector serves all layers.

    Args:
        model: A supernet with the weights of a float net, calibrated.
        space: Its groups.
        batches: Batches of a dataloader, not preprocessed.
        vectors, tolerance, seed, cache, step: As of :func:`traces`.

    Returns:
        For each group Ω of every candidate (m,), float64.
    """
    trace = traces(model, space, batches, vectors, tolerance, seed, cache, step)
    errors = quantization_errors(model, space, batches)
    harms = []
    for group in space.groups:
        harm = np.zeros(len(group.candidates))
        for name in group.layers:
            w_errors, a_errors = errors[name]
            harm += max(0.0, trace.weights[name]) * w_errors
            harm += max(0.0, trace.inputs[name]) * a_errors
        harms.append(harm)
    return harms


def traces(
    model: BaseModel,
    space: SearchSpace,
    batches: Sequence[Any],
    vectors: int = 200,
    tolerance: float = 0.1,
    seed: int = 0,
    cache: Measurements | None = None,
    step: Callable[[int, float], None] | None = None,
) -> Traces:
    """Mean Hessian traces of all searchable layers, by Hutchinson's estimator.

    E[vᵀHv] = Tr(H) for Rademacher vectors v. The weights of all layers are estimated
    from the same product Hv, and so are their inputs: what lies off the diagonal of
    blocks adds noise of mean 0, for a cost that does not grow with the layers. These
    compute in float, BatchNorm with its running statistics.

    Args:
        model: A toolbox model, unwrapped.
        space: Its groups.
        batches: Batches of a dataloader; vector k is used on batch k mod their number.
        vectors: Most vectors.
        tolerance: Stop once the relative standard error of half of the traces is below.
        seed: Of the vectors, with their number.
        cache: Takes each vector's estimates; what it holds is not computed again.
        step: Called as ``step(vectors, error)`` after each vector.

    Raises:
        ValueError: There is no batch, or an estimate is not finite.
    """
    if not batches:
        raise ValueError('batches: found none; at least one is needed')
    cache = Measurements() if cache is None else cache
    names = [n for group in space.groups for n in group.layers]
    samples: list[list[float]] = list(cache.get('samples', []))
    how = cache.get('how', EXACT)
    parts = range(len(names)), range(len(names), 2 * len(names))
    error = relative_error(samples)
    if samples and step is not None:
        step(len(samples), error)
    with Probe(model, names) as probe, open_checkpoints(recompute=False):
        while len(samples) < vectors:
            enough = len(samples) >= max(FEWEST, len(batches))
            if enough and error <= tolerance:
                break
            k = len(samples)
            generator = torch.Generator().manual_seed(seed + 7_919 * k)
            forward = probe.at(batches[k % len(batches)])
            try:
                epsilon = None if how == EXACT else EPSILON
                sample = trace_sample(forward, generator, parts, epsilon)
            except NotTwiceDifferentiable:
                how = cache['how'] = DIFFERENCES
                continue
            if not bool(torch.isfinite(sample).all()):
                raise ValueError(
                    'hessian: an estimate of the traces is not finite; check the loss '
                    'of the float checkpoint on these batches'
                )
            samples.append(sample.tolist())
            cache['samples'] = samples
            error = relative_error(samples)
            if step is not None:
                step(len(samples), error)
    means = np.mean(samples, axis=0).tolist()
    return Traces(
        weights=dict(zip(names, means[: len(names)], strict=True)),
        inputs=dict(zip(names, means[len(names) :], strict=True)),
        vectors=len(samples),
        error=error,
        how=how,
    )


@torch.no_grad()
def quantization_errors(
    model: BaseModel, space: SearchSpace, batches: Sequence[Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """‖Q(W) - W‖² and ‖Q(x) - x‖² of each searchable layer, by candidate (m,).

    x are all its inputs in a batch of the float net, the error is a mean over the
    batches. A skipped block has Q(W) = 0 and no error of its inputs.
    """
    names = [n for group in space.groups for n in group.layers]
    errors = {}
    with Probe(model, names) as probe, open_checkpoints(recompute=False):
        for name, layer in probe.layers.items():
            w_errors = weight_errors(layer)
            errors[name] = w_errors, np.zeros_like(w_errors)
        for batch in batches:
            _, blocks = probe.at(batch)(None)
            for (name, layer), xs in zip(
                probe.layers.items(), blocks[len(names) :], strict=True
            ):
                errors[name][1][:] += input_errors(layer, xs) / len(batches)
    return errors
