"""Weights rounded and biases corrected, layer after layer of the net so far."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.layers import QuantLayer, float_mode, quantized_layers
from mmmpq.layers.base import QuantizedLayer
from mmmpq.policy import SKIP
from mmmpq.post_training.rounding import (
    bias_of,
    error_of,
    grouped,
    held_out,
    learn_rounding,
)
from mmmpq.post_training.rows import Gram, grams_of, outputs_of, pooled
from mmmpq.quantizers import StoredQuantizer

ROUNDINGS = ('nearest', 'learned')
LARGEST = 8192  # inputs to an output: their covariance takes 256 MB
DRIFT = 0.5  # share of the variance beyond which a layer's target is its own

Kept = MutableMapping[str, Mapping[str, Tensor]]


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    batches: Sequence[Any],
    rounding: str = 'learned',
    kept: Kept | None = None,
    step: Callable[[int, int, str], None] | None = None,
) -> dict[str, float]:
    """Has every layer give what it gives in the float net, as well as it can, in place.

    In the order of their first calls, for each layer: its inputs in the quantized net
    so far, and its outputs in the float net, at the same sampled positions, say how its
    weights are rounded (:func:`.rounding.learn_rounding`) and which bias gives outputs
    of the right mean. The weights end on the grid of their quantizer, so that export
    and integers need to know nothing of it. Layers whose weight is not what they are
    quantized from, with more than 8192 inputs to an output, or that share a weight with
    an earlier one, and convolutions other than Conv2d, stay rounded to the nearest;
    those without a bias keep none.

    Source: Up or Down? (2020, arXiv 2004.10568) for order and inputs; Data-Free
    Quantization Through Weight Equalization and Bias Correction (2019, arXiv
    1906.04721) for the bias, here from data.

    Args:
        model: Of fixed precision, calibrated, with the weights of the float net.
        batches: As of :func:`mmmpq.models.task_loss.raw_outputs`, some.
        rounding: 'learned', or 'nearest': biases alone are corrected.
        kept: Takes weight and bias of each layer; those it holds are not made again.
        step: Called with ``(done, total, name of the next layer)``, at the end ''.

    Returns:
        Of each layer that was learned, the error of its outputs as a share of what
        rounding to the nearest leaves.
    """
    kept = {} if kept is None else kept
    layers = {n: m for n, m in quantized_layers(model).items() if _counts(m)}
    was_training = model.training
    model.eval()
    with float_mode(model):
        targets = outputs_of(model, layers, batches)
    seen: set[int] = set()
    shares = {}
    for i, (name, calls) in enumerate(targets.items()):
        if step is not None:
            step(i, len(targets), name)
        layer, first = layers[name], id(layers[name].weight) not in seen
        seen.add(id(layer.weight))
        if name not in kept:
            learn = first and rounding == 'learned'
            state = _settled(layer, grams_of(model, name, layer, batches, calls), learn)
            shares[name] = state.pop('share', None)
            kept[name] = state
        _take(layer, kept[name])
        targets[name] = []  # no longer needed, and large
    if step is not None:
        step(len(targets), len(targets), '')
    model.train(was_training)
    return {n: s for n, s in shares.items() if s is not None}


def _counts(layer: nn.Module) -> bool:
    """Whether anything of a layer is quantized, and its rows are known."""
    plain = isinstance(layer, QuantLayer) and isinstance(layer, (nn.Conv2d, nn.Linear))
    return plain and layer.precision not in (SKIP, (32, 32))


def learns(layer: QuantizedLayer) -> bool:
    """Whether the rounding of its weight can be learned."""
    plain = isinstance(layer, (nn.Conv2d, nn.Linear))
    plain = plain and layer._latent_weight() is layer.weight
    return plain and layer.weight[0].numel() <= LARGEST


def grid_of(
    layer: QuantizedLayer, bits: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Weight, step, zero point and levels, as :func:`.rounding.learn_rounding` takes
    them."""
    steps, offsets = layer.w_quantizer.grids(layer.weight, (bits,))
    zero = torch.zeros_like(steps[0]) if offsets is None else offsets[0]
    return layer.weight, steps[0], zero, layer.w_quantizer.levels(bits)


def _settled(layer: QuantLayer, folds: list[Gram], learn: bool) -> dict[str, Any]:
    """Weight and bias of a layer, and what learning has left of the error."""
    folds = _own_target(layer, folds)
    state: dict[str, Any] = {}
    bits = layer.precision.w_bits
    nearest = weight = layer.w_quantizer(layer._latent_weight(), bits)
    learn = learn and bits != 32 and learns(layer)
    if learn:
        grid = grid_of(layer, bits)
        per_sample = held_out(*grid, folds)
    gram = pooled(folds)
    del folds  # each as large as all together
    if learn:
        weight = learn_rounding(*grid, gram, per_sample)
        state['weight'] = weight
        _, step, zero, levels = grid
        state['grid'] = torch.stack([step.float(), zero.float().expand_as(step)])
        state['levels'] = torch.tensor(levels)
        errors = [
            float(error_of(grouped(w, gram), gram).sum()) for w in (weight, nearest)
        ]
        state['share'] = errors[0] / max(errors[1], 1e-30)
    if layer.affine and layer.bias is not None:
        state['bias'] = bias_of(weight, gram)
    return state


def _take(layer: QuantLayer, state: Mapping[str, Tensor]) -> None:
    if 'bias' in state:
        layer.bias.copy_(state['bias'])
    if 'weight' not in state:
        return
    layer.weight.copy_(state['weight'])
    bits = layer.precision.w_bits
    if not torch.equal(layer.w_quantizer(layer.weight, bits), state['weight']):
        # Its grid follows from the weights, and is another one now.
        stored = StoredQuantizer((bits,))
        step, zero = state['grid']
        stored.set_grid(step, zero, tuple(state['levels'].tolist()))
        layer.store(stored)


def _own_target(layer: QuantLayer, folds: list[Gram]) -> list[Gram]:
    """Where the net so far is another one than the float net, beyond what this layer
    could mend, what the layer should give is what its own weight does."""
    w = grouped(layer._latent_weight(), folds[0])
    left = sum(g.rows * error_of(w, g).sum() for g in folds)
    if left <= DRIFT * sum(g.rows * g.yy.sum() for g in folds):
        return folds
    bias = 0 if layer.bias is None else layer.bias.float().reshape(len(w), 1, -1)
    found = []
    for g in folds:
        xy = g.xx @ w
        found.append(g._replace(xy=xy, yy=(w * xy).sum(1), y=g.x @ w + bias))
    return found
