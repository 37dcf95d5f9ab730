"""What quantized convolutions and linear layers share."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmmpq.layers.inputs import sample
from mmmpq.layers.island import Island
from mmmpq.layers.modes import Mode
from mmmpq.layers.quantized_weight import (
    QuantizedWeight,
    computed_dtype,
    outputs_first,
)
from mmmpq.policy import SKIP, Precision
from mmmpq.quantizers import Quantizer, StoredQuantizer
from mmmpq.quantizers.functional import saving_is_hooked
from mmmpq.registry import QUANTIZERS, build

LINEAR = dict(type='LinearQuantizer')


class Ahead(NamedTuple):
    """What a layer will quantize its weight to, as far as it knows beforehand.

    Attributes:
        bits: The widths.
        probs: Their coefficients; None: there is one width.
        state: As of :meth:`QuantizedLayer._once`.
    """

    bits: tuple[int, ...]
    probs: Tensor | None
    state: tuple


class QuantizedLayer:
    """Mixin beside a convolution or ``nn.Linear``: quantizers of weights and input.

    The float layer's parameters keep their names, so that pretrained checkpoints,
    ``init_cfg`` and paramwise rules go on working. ``compute(x, weight, bias)``, the
    float operation, and ``_quantized(x)`` come from the other classes.
    """

    weight: Tensor
    bias: Tensor | None
    w_quantizer: Quantizer
    a_quantizer: Quantizer

    affine = True  # its output is W x + b: export may fold into W and b
    out_dim = 0  # of the weight, where its output channels are
    mode = Mode.QUANTIZED
    _loading = False
    # (state, weight) if it has been quantized with those of other layers.
    _weight_ahead: tuple[tuple, Tensor] | None = None

    @classmethod
    def from_float(cls, layer: nn.Module, **quant: Any) -> nn.Module:
        """Turns a float layer into one of this class, in place.

        Every reference to the layer, its parameters and its hooks stay what they were.
        """
        layer.__class__ = cls
        layer._init_quant(**quant)
        return layer

    def _init_quantizers(
        self,
        w_bits: Sequence[int],
        a_bits: Sequence[int],
        quantizer: dict | None = None,
        w_quantizer: dict | None = None,
        a_quantizer: dict | None = None,
    ) -> None:
        a_cfg = a_quantizer or quantizer or LINEAR
        self.w_quantizer = self._w_quantizer(w_bits, w_quantizer or quantizer)
        a_cfg = {k: v for k, v in a_cfg.items() if k != 'per_channel'}
        self.a_quantizer = build(
            QUANTIZERS, a_cfg, 'a_quantizer', bits=a_bits, target='activation'
        ).to(self.weight.device)
        self.a_quantizer.channel_dim = -1 if isinstance(self, nn.Linear) else 1

    def _w_quantizer(self, bits: Sequence[int], cfg: dict | None) -> Quantizer:
        channels = self.weight.shape[self.out_dim]
        options = dict(bits=bits, target='weight', channels=channels)
        quantizer = build(QUANTIZERS, cfg or LINEAR, 'w_quantizer', **options)
        return quantizer.to(self.weight.device)

    def _once(self, make: Callable[[], Tensor], *state: Any) -> Tensor:
        """The quantized weight ``make()``, remembered for one kind of ``state[0]``."""
        if torch.compiler.is_compiling():
            return make()
        if self._weight_ahead is not None and torch.is_grad_enabled():
            of, weight = self._weight_ahead
            good = of == state and weight.dtype == computed_dtype(self.weight)
            if good and not saving_is_hooked():
                return weight
        weights = self.__dict__.setdefault('_quantized_weights', {})
        if state[0] not in weights:
            weights[state[0]] = QuantizedWeight()
        quantizer = self.w_quantizer
        of = self.weight, *quantizer._parameters.values(), *quantizer._buffers.values()
        return weights[state[0]](make, of, *state)

    def _ahead(self) -> Ahead | None:
        """The weight of the forward pass that begins; None if it is not known yet."""
        return None

    def _latent_weight(self) -> Tensor:
        """What is quantized, (C_out, ...): the weight, or what is made of it."""
        return outputs_first(self.weight, self.out_dim)

    def __setattr__(self, name: str, value: Any) -> None:
        made = name == 'weight' and 'a_quantizer' in self._modules
        if made and value is not self.weight and not self._loading:
            raise RuntimeError(
                f'{type(self).__name__}.weight: found another one, as of a fused '
                'BatchNorm or of tied layers; its range is that of the first: change '
                'weights in place, and fuse and tie before the model is quantized'
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.__dict__['_loading'] = True  # which with ``assign`` takes what it loads
        try:
            super()._load_from_state_dict(*args)
        finally:
            del self.__dict__['_loading']

    def train(self, mode: bool = True) -> nn.Module:
        self.__dict__.pop('_quantized_weights', None)
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:  # torch's name, for calls by keyword
        if self.mode is Mode.QUANTIZED:
            return self._quantized(input)
        if self.mode is Mode.RECORDING and input.numel():
            self.recorded.append(sample(input))
        return self.compute(input, self._latent_weight(), self.bias)

    def calibrate(self, samples: Sequence[Tensor]) -> None:
        """Fits what is not calibrated yet: to the weights, to samples of the inputs."""
        if not self.w_quantizer.calibrated:
            self.w_quantizer.calibrate(self._latent_weight())
        if samples and not self.a_quantizer.calibrated:
            self.a_quantizer.calibrate(torch.cat(list(samples)))


class QuantLayer(QuantizedLayer):
    """One precision: conv(Q_a(x), Q_w(W)).

    Args:
        *args, **kwargs: As of the float layer, and:
        w_bits, a_bits: Widths of weights and input, 1 to 8 (the input's also 16), or 32
            for float.
        quantizer: Config of both quantizers, or
        w_quantizer, a_quantizer: of each.

    Examples:
        >>> conv_cfg = dict(type='mmmpq.QuantConv2d', w_bits=4, a_bits=4)
    """

    def __init__(
        self,
        *args: Any,
        w_bits: int,
        a_bits: int,
        quantizer: dict | None = None,
        w_quantizer: dict | None = None,
        a_quantizer: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        refuse_skip(Precision.parse((w_bits, a_bits), 'w_bits, a_bits'))
        self._init_quant(w_bits, a_bits, quantizer, w_quantizer, a_quantizer)

    def _init_quant(self, w_bits: int, a_bits: int, *args: Any, **kwargs: Any) -> None:
        self.precision = Precision.parse((w_bits, a_bits))
        skipped = self.precision == SKIP
        # The quantizers of a skipped block are there for the checkpoint alone.
        widths = ((32,), (32,)) if skipped else ((w_bits,), (a_bits,))
        self._init_quantizers(*widths, *args, **kwargs)
        if skipped:
            self.w_quantizer.set_sign(True)
            self.a_quantizer.set_sign(True)

    def store(self, quantizer: StoredQuantizer) -> None:
        """Takes a quantizer of known integers in place of the trained one."""
        self.w_quantizer = quantizer.to(self.weight.device)
        self.__dict__.pop('_quantized_weights', None)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        bounds = state_dict.get(f'{prefix}w_quantizer.bounds')
        if bounds is not None:
            low, high = bounds.tolist()
            bits = (high - low).bit_length()
            if bits != self.precision.w_bits:
                raise ValueError(
                    f'{prefix}weight: the checkpoint has integers of {bits} bits; the '
                    f"model's layer has {self.precision}"
                )
            self.store(StoredQuantizer((bits,)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _ahead(self) -> Ahead | None:
        bits = self.precision.w_bits
        return None if bits == 32 else Ahead((bits,), None, (bits,))

    def _quantized(self, x: Tensor) -> Tensor:
        w_bits, a_bits = self.precision
        weight = self._once(
            lambda: self.w_quantizer(self._latent_weight(), w_bits), w_bits
        )
        return self.compute(self.a_quantizer(x, a_bits), weight, self.bias)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, {self.precision}'


def refuse_skip(precision: Precision, key: str = 'precision') -> None:
    """Raises ValueError, about ``key``, for (0, 0), which a layer alone cannot be."""
    if precision == SKIP:
        raise ValueError(
            f'{key}: found (0, 0) for a layer; it skips a whole residual block, and '
            "is accepted in `quant` of type='mmmpq.QuantModel'"
        )


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The model's quantized layers by name, each shared one once, in module order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def quantizing(model: nn.Module) -> dict[str, QuantizedLayer | Island]:
    """The model's quantized layers, and the tensors between them that are quantized."""
    kinds = QuantizedLayer, Island
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


@contextlib.contextmanager
def computing(layers: Iterable[QuantizedLayer | Island], mode: Mode):
    """Within it these layers compute in ``mode``; afterwards as before."""
    before = [(layer, layer.mode) for layer in layers]
    for layer, _ in before:
        layer.mode = mode
    try:
        yield
    finally:
        for layer, mode in before:
            layer.mode = mode


def float_mode(model: nn.Module) -> contextlib.AbstractContextManager:
    """Within it, every quantized layer of ``model`` computes as a plain float layer."""
    return computing(quantizing(model).values(), Mode.FLOAT)


@contextlib.contextmanager
def calibrating(model: nn.Module):
    """Within it the layers compute in float and sample their inputs; at the end they
    fit to what they saw those quantizers that are not calibrated yet. Layers without
    any input are reported."""
    layers = quantizing(model)
    for layer in layers.values():
        layer.recorded = []
    try:
        with computing(layers.values(), Mode.RECORDING):
            yield
    finally:
        samples = [layer.__dict__.pop('recorded') for layer in layers.values()]
    unseen: list[str] = []
    seen: dict[Quantizer, list[Tensor]] = {}  # which several may have
    for layer, inputs in zip(layers.values(), samples, strict=True):
        seen.setdefault(layer.a_quantizer, []).extend(inputs)
    for name, layer in layers.items():
        inputs = seen[layer.a_quantizer]
        layer.calibrate(inputs)
        fits_none = inputs and layer.a_quantizer.per_subnet
        if not layer.a_quantizer.calibrated and not fits_none:
            unseen.append(name)
    if unseen:
        print_log(
            'no input, or only zeros, reached these layers in calibration; they are '
            f'calibrated on the first that is other than zero: {", ".join(unseen)}',
            logger='current',
        )
