"""The weights of a model on a GPU, quantized together at the start of a forward pass.

Each is so small that launching its kernel takes the host longer than the device needs
to run it; together they are a few launches. Layers whose quantizer, weight or mode is
of another kind quantize their own when they are called, as all do on a CPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmmpq.layers.base import Ahead, Mode, QuantizedLayer, quantized_layers
from mmmpq.layers.quantized_weight import begin_pass, computed_dtype, end_pass
from mmmpq.quantizers import Quantizer, functional, native

CHUNK = 16  # layers whose gradients wait for each other
_of_models: WeakKeyDictionary = WeakKeyDictionary()


def watch_passes(model: nn.Module) -> None:
    """Lets the layers of ``model`` know when a forward pass begins and ends."""
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end, always_call=True)


def _begin(model: nn.Module, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    begin_pass()
    if torch.is_grad_enabled():
        if model not in _of_models:
            _of_models[model] = WeightsAhead(quantized_layers(model).values())
        _of_models[model].begin()


def _end(model: nn.Module, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    end_pass()
    if model in _of_models:
        _of_models[model].end()


class _Weight(NamedTuple):
    layer: QuantizedLayer
    ahead: Ahead
    weight: Tensor
    ranges: Tensor
    divisors: tuple[float, ...]


class WeightsAhead:
    """Quantizes ahead what can be; the layers then find it in ``_weight_ahead``.

    Args:
        layers: The quantized layers of a model.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        self.layers = list(layers)
        self._key: tuple = ()
        self._plans: list = []

    def begin(self) -> None:
        """For the pass that begins."""
        if not self.layers or not has_kernels(self.layers[0].weight):
            return
        weights = list(self._weights())
        key = tuple(
            (w.weight.data_ptr(), w.weight.stride(), w.ranges.data_ptr(), w.ahead.bits)
            + (w.divisors, w.layer.w_quantizer._signed, w.ahead.probs is None)
            for w in weights
        )
        if key != self._key:
            self._plans = list(_plans(weights))
            self._key = key
        for places, plan in self._plans:
            chosen = [weights[i] for i in places]
            probs = [w.ahead.probs for w in chosen if w.ahead.probs is not None]
            out = _batch().FakeQuantizeAll.apply(
                plan,
                computed_dtype(chosen[0].weight),
                *(w.weight for w in chosen),
                *(w.ranges for w in chosen),
                *probs,
            )
            for w, quantized in zip(chosen, out, strict=True):
                w.layer._weight_ahead = w.ahead.state, quantized

    def end(self) -> None:
        for layer in self.layers:
            layer._weight_ahead = None

    def _weights(self) -> Iterator[_Weight]:
        for layer in self.layers:
            quantizer = layer.w_quantizer
            weight = layer._parameters.get('weight')
            usual = _plain(type(layer), type(quantizer)) and weight is not None
            if not (usual and layer.mode is Mode.QUANTIZED and quantizer.calibrated):
                continue
            ahead = layer._ahead()
            if ahead is None or ahead.bits != quantizer.bits:
                continue
            ranges = quantizer.ranges(ahead.bits)
            if ranges is None or quantizer.offsets(weight, ahead.bits) is not None:
                continue
            if ranges[0].is_leaf:
                yield _Weight(layer, ahead, weight, *ranges)


def has_kernels(weight: Tensor) -> bool:
    """Whether there are kernels for it, and its graph is an ordinary one."""
    return (
        weight.device.type == 'cuda'
        and functional._triton() is not None
        and not functional.saving_is_hooked()
    )


@cache
def _batch():
    from mmmpq.quantizers.kernels import triton_batch

    return triton_batch


@cache
def _plain(layer: type, quantizer: type) -> bool:
    """Whether they do with a weight what the base classes do."""
    names = ('forward', 'mix', '_fake_quantize', 'grids')
    return (
        layer._latent_weight is QuantizedLayer._latent_weight
        and not layer.out_dim
        and all(getattr(quantizer, n) is getattr(Quantizer, n) for n in names)
        and quantizer.gradient == 'lsq'
    )


def _plans(weights: Sequence[_Weight]) -> Iterator[tuple[list[int], object]]:
    """(Places among ``weights``, their plan) of every chunk."""
    places = [i for i, w in enumerate(weights) if _fits(w, weights[0].weight.device)]
    for start in range(0, len(places), CHUNK):
        chunk = places[start : start + CHUNK]
        mixes = []
        for i in chunk:
            w, bits = weights[i], weights[i].ahead.bits
            quantizer = w.layer.w_quantizer
            mixes.append(
                _batch().Mix(
                    w.weight.detach(),
                    w.ranges.detach(),
                    tuple(quantizer.levels(b) for b in bits),
                    tuple(w.divisors),
                    tuple(quantizer.scale_grad(w.weight, b) for b in bits),
                    w.ahead.probs is not None,
                )
            )
        yield chunk, _batch().Plan(mixes)


def _fits(w: _Weight, device: torch.device) -> bool:
    return (
        w.weight.device == device
        and w.weight.dtype == w.ranges.dtype == torch.float32
        and w.weight.numel() > 0
        and w.ranges.is_contiguous()
        and functional._dense(w.weight) is w.weight
        and native.rows(w.weight, w.ranges) is not None
    )
