"""The float net, and what passes through its layers, to be differentiated."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.baselines.hutchinson import Forward
from mmmpq.layers import (
    MixedLayer,
    first_input,
    float_mode,
    leaves,
    quantized_part,
)
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.models.task_loss import are_logits
from mmmpq.policy import SKIP
from mmmpq.randomness import isolated_randomness


class Probe:
    """The float net as a function of the weights and of the inputs of some layers.

    Within it the model is in train mode, but for its BatchNorms; afterwards it is as
    it was.

    Args:
        model: A supernet; with ``labels=False`` any model that takes a batch.
        names: Of the layers.
        labels: Whether the loss is the task's; else it is :func:`own_loss`.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], labels: bool = True
    ) -> None:
        self.model, self.labels = model, labels
        modules = dict(quantized_part(model).named_modules())
        self.layers: dict[str, MixedLayer] = {n: modules[n] for n in names}
        places = {id(module): name for name, module in model.named_modules()}
        self._places = [places[id(layer)] for layer in self.layers.values()]

    def __enter__(self) -> 'Probe':
        with contextlib.ExitStack() as stack:
            stack.enter_context(float_mode(self.model))
            stack.enter_context(_frozen_norms(self.model))
            for i, layer in enumerate(self.layers.values()):
                handle = layer.register_forward_pre_hook(
                    self._watch(i), with_kwargs=True
                )
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.close()

    def at(self, batch: Any) -> Forward:
        """The loss on a batch, its blocks: each layer's weight, each one's inputs."""

        def forward(shifts=None):
            self._inputs: list[list[Tensor]] = [[] for _ in self.layers]
            self._shifts = shifts[len(self.layers) :] if shifts else []
            weights = {
                f'{place}.weight': layer.weight.detach().requires_grad_()
                for place, layer in zip(self._places, self.layers.values(), strict=True)
            }
            moved = dict(weights)
            for name, shift in zip(weights, shifts or (), strict=False):
                if shift is not None:
                    moved[name] = weights[name] + shift[0]
            with isolated_randomness(0):
                out = functional_call(self.model, moved, *self._arguments(batch))
                if self.labels:
                    loss, _ = self.model.parse_losses(out)
                else:
                    loss = own_loss(out)
            return loss, [[w] for w in weights.values()] + self._inputs

        return forward

    def _arguments(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        if not isinstance(self.model, BaseModel):
            return (batch,), {}
        data = self.model.data_preprocessor(batch, self.labels)
        args, kwargs = ((), data) if isinstance(data, dict) else (data, {})
        return tuple(args), dict(kwargs, mode='loss' if self.labels else 'tensor')

    def _watch(self, index: int):
        def hook(layer: nn.Module, args: tuple, kwargs: dict):
            x = first_input(args, kwargs)
            if x.requires_grad:
                x = x.view_as(x)  # of what several layers read, this one's part
            elif torch.is_grad_enabled():
                x = x.detach().requires_grad_()
            inputs = self._inputs[index]
            inputs.append(x)
            if self._shifts and self._shifts[index] is not None:
                x = x + self._shifts[index][len(inputs) - 1]
            return (x,), {}

        return hook


def own_loss(outputs: Any) -> Tensor:
    """A random loss of raw outputs that needs no labels: the expectation of its squared
    gradients is the curvature of their distance from the float net's.

    * Of one (N, K) tensor, logits: the cross-entropy of classes drawn from softmax, so
      that the distance is KL(softmax(float) ‖ softmax).
    * Of others: Σ v·y / ‖y‖ over the tensors y, with random signs v, for the distance
      Σ ‖y - y_float‖² / ‖y_float‖².
    """
    parts = [
        y for y in leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()
    ]
    if are_logits(parts):
        drawn = torch.multinomial(parts[0].detach().float().softmax(1), 1)[:, 0]
        return nn.functional.cross_entropy(parts[0], drawn)
    total = sum(
        (y * torch.randint_like(y, 2).mul(2).sub(1)).sum()
        / y.detach().norm().clamp_min(1e-12)
        for y in parts
    )
    return total / len(parts[0]) ** 0.5


@contextlib.contextmanager
def _frozen_norms(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def weight_errors(layer: MixedLayer, slope: Tensor | float | None = 1.0) -> np.ndarray:
    """Σ (slope · (Q(W) - W))² of every candidate (m,), float64.

    A skipped block has Q(W) = 0.

    Args:
        layer: A searched layer.
        slope: Of the shape of W, a number, or None for 0.
    """
    w = layer.weight
    errors = []
    for j, c in enumerate(layer.candidates):
        quantized = 0 * w
        if c != SKIP:
            quantized = outputs_first(layer.candidate_weight(j), layer.out_dim)
        errors.append(_error(quantized, w, slope))
    return np.array(errors)


@torch.no_grad()
def input_errors(
    layer: MixedLayer,
    inputs: Sequence[Tensor],
    slopes: Sequence[Tensor | float | None] | None = None,
) -> np.ndarray:
    """Σ (slope · (Q(x) - x))² over all inputs, of every candidate (m,), float64.

    A skipped block has no error of its inputs.

    Args:
        layer: A searched layer.
        inputs: Of its calls.
        slopes: One each, as of :func:`weight_errors`; default: 1.
    """
    pairs = list(zip(inputs, slopes or [1.0] * len(inputs), strict=True))
    by_bits = {
        bits: sum(_error(layer.a_quantizer(x, bits), x, slope) for x, slope in pairs)
        for bits in {c.a_bits for c in layer.candidates} - {0}
    }
    return np.array([by_bits.get(c.a_bits, 0.0) for c in layer.candidates])


def _error(quantized: Tensor, x: Tensor, slope: Tensor | float | None) -> float:
    if slope is None:  # no path of the loss leads through it
        return 0.0
    return float(((quantized - x) * slope).double().square().sum())
