"""What quantized convolutions and linear layers share."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmmpq.layers.relaxation import Softmax
from mmmpq.policy import Precision, parse_candidates
from mmmpq.quantizers import Quantizer
from mmmpq.registry import QUANTIZERS, RELAXATIONS, build

MIXINGS = ('composite', 'outputs', 'sampled')
LINEAR = dict(type='LinearQuantizer')


class QuantizedLayer:
    """Mixin beside ``nn.Conv2d`` or ``nn.Linear``: quantizers of weights and input.

    The float layer's parameters keep their names, so that pretrained checkpoints,
    ``init_cfg`` and paramwise rules go on working. ``_compute(x, weight, bias)``, the
    float operation, and ``_quantized(x)`` come from the other classes.
    """

    weight: Tensor
    bias: Tensor | None
    w_quantizer: Quantizer
    a_quantizer: Quantizer

    # 'float' or a list: the plain float layer, in the latter case collecting a sample
    # of its inputs. None: quantized.
    _mode: Any = None

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
        w_cfg = w_quantizer or quantizer or LINEAR
        a_cfg = a_quantizer or quantizer or LINEAR
        self.w_quantizer = build(
            QUANTIZERS,
            w_cfg,
            bits=w_bits,
            target='weight',
            channels=self.weight.shape[0],
        ).to(self.weight.device)
        a_cfg = {k: v for k, v in a_cfg.items() if k != 'per_channel'}
        self.a_quantizer = build(
            QUANTIZERS, a_cfg, bits=a_bits, target='activation'
        ).to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if self._mode is not None:
            if self._mode != 'float' and x.numel():
                self._mode.append(_sample(x))
            return self._compute(x, self.weight, self.bias)
        return self._quantized(x)

    def calibrate(self, samples: Sequence[Tensor]) -> None:
        """Fits what is not calibrated yet: to the weights, to samples of the inputs."""
        if not self.w_quantizer.calibrated:
            self.w_quantizer.calibrate(self.weight)
        if samples and not self.a_quantizer.calibrated:
            self.a_quantizer.calibrate(torch.cat(list(samples)))


class QuantLayer(QuantizedLayer):
    """One precision: conv(Q_a(x), Q_w(W)).

    Args:
        *args, **kwargs: As of the float layer, and:
        w_bits, a_bits: Widths of weights and input, 1 to 8, or 32 for float.
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
        self._init_quant(w_bits, a_bits, quantizer, w_quantizer, a_quantizer)

    def _init_quant(self, w_bits: int, a_bits: int, *args: Any, **kwargs: Any) -> None:
        self.precision = Precision.parse((w_bits, a_bits))
        self._init_quantizers((w_bits,), (a_bits,), *args, **kwargs)

    def _quantized(self, x: Tensor) -> Tensor:
        weight = self.w_quantizer(self.weight, self.precision.w_bits)
        return self._compute(
            self.a_quantizer(x, self.precision.a_bits), weight, self.bias
        )

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, {self.precision}'


class MixedLayer(QuantizedLayer):
    """All candidates of a search, mixed by the probabilities p of the layer's group.

    * ``composite``: one conv(Σ_a p(a) Q_a(x), Σ_w p(w) Q_w(W)) with the marginals.
    * ``outputs``: Σ_j p_j conv(Q_a(x), Q_w(W)), exactly; candidates that share an
      activation width are merged first: Σ_a conv(Q_a(x), Σ_{w|a} p_{w,a} Q_w(W)).
    * ``sampled``: the one path that the relaxation drew. In an architecture step the
      gradient of its composite passes straight through to p.

    Args:
        *args, **kwargs: As of the float layer, and:
        candidates: Precisions, such as ``[(2, 2), (4, 4)]`` or ``['W2A2', 'W4A4']``.
        relaxation: Config, or the relaxation that the layers of a group share.
        mixing: One of the three above.
        quantizer: Config of both quantizers, or
        w_quantizer, a_quantizer: of each.
    """

    def __init__(
        self,
        *args: Any,
        candidates: Any,
        relaxation: Any = None,
        mixing: str = 'composite',
        quantizer: dict | None = None,
        w_quantizer: dict | None = None,
        a_quantizer: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._init_quant(
            candidates, relaxation, mixing, quantizer, w_quantizer, a_quantizer
        )

    def _init_quant(
        self,
        candidates: Any,
        relaxation: Any = None,
        mixing: str = 'composite',
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if mixing not in MIXINGS:
            raise ValueError(f'mixing: found {mixing!r}; accepted are {MIXINGS}')
        if not isinstance(relaxation, Softmax):
            candidates = parse_candidates(candidates)
            cfg = relaxation or dict(type='Softmax')
            relaxation = build(RELAXATIONS, cfg, candidates=candidates)
        self.mixing = mixing
        if relaxation.owned:
            # A plain reference: as a submodule of every layer of its group it would
            # be saved, and handed to an optimizer's parameter groups, many times.
            self.__dict__['relaxation'] = relaxation
        else:
            self.relaxation = relaxation.to(self.weight.device)
            relaxation.owned = True
        self._init_quantizers(relaxation.w_bits, relaxation.a_bits, *args, **kwargs)

    @property
    def candidates(self) -> tuple[Precision, ...]:
        return self.relaxation.candidates

    def _quantized(self, x: Tensor) -> Tensor:
        relaxation = self.relaxation
        if self.mixing == 'sampled' and relaxation.choice is not None:
            if not relaxation.logits.requires_grad:
                w_bits, a_bits = relaxation.candidates[relaxation.choice]
                weight = self.w_quantizer(self.weight, w_bits)
                return self._compute(self.a_quantizer(x, a_bits), weight, self.bias)
            return self._composite(x, relaxation.path())
        if self.mixing == 'outputs':
            return self._outputs(x, relaxation.mixture())
        return self._composite(x, relaxation.mixture())

    def _composite(self, x: Tensor, probs: Tensor) -> Tensor:
        w_probs, a_probs = self.relaxation.marginals(probs)
        weight = self.w_quantizer.mix(self.weight, self.relaxation.w_bits, w_probs)
        x = self.a_quantizer.mix(x, self.relaxation.a_bits, a_probs)
        return self._compute(x, weight, self.bias)

    def _outputs(self, x: Tensor, probs: Tensor) -> Tensor:
        total = None
        for a_bits in self.relaxation.a_bits:
            same = [j for j, c in enumerate(self.candidates) if c.a_bits == a_bits]
            weight = self.w_quantizer.mix(
                self.weight, [self.candidates[j].w_bits for j in same], probs[same]
            )
            bias = self.bias if total is None else None
            out = self._compute(self.a_quantizer(x, a_bits), weight, bias)
            total = out if total is None else total + out
        return total

    def extra_repr(self) -> str:
        names = ' '.join(map(str, self.candidates))
        return f'{super().extra_repr()}, mixing={self.mixing}, candidates={names}'

    def fix(self, precision: Precision) -> None:
        """Becomes the layer of one precision, in place, with what it has learned.

        Raises:
            ValueError: ``precision`` is none of the candidates.
        """
        if precision not in self.candidates:
            raise ValueError(
                f'policy: found {Precision(*precision)} for a layer with the '
                f'candidates {", ".join(map(str, self.candidates))}'
            )
        self.w_quantizer.select(precision.w_bits)
        self.a_quantizer.select(precision.a_bits)
        del self.relaxation, self.mixing
        self.precision = precision
        self.__class__ = self.fixed_class


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The model's quantized layers by name, each shared one once, in module order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}


@contextlib.contextmanager
def float_mode(model: nn.Module):
    """Within it, every quantized layer of ``model`` computes as a plain float layer."""
    layers = quantized_layers(model).values()
    before = [layer._mode for layer in layers]
    for layer in layers:
        layer._mode = 'float'
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer._mode = mode


@contextlib.contextmanager
def calibrating(model: nn.Module):
    """Within it the layers compute in float and sample their inputs; at the end they
    fit to what they saw those quantizers that are not calibrated yet. Layers without
    any input are reported."""
    layers = quantized_layers(model)
    try:
        for layer in layers.values():
            layer._mode = []
        yield
        unseen: list[str] = []
        for name, layer in layers.items():
            layer.calibrate(layer._mode)
            if not layer._mode:
                unseen.append(name)
        if unseen:
            print_log(
                'no input reached these layers in calibration; they are calibrated '
                f'on their first batch: {", ".join(unseen)}',
                logger='current',
            )
    finally:
        for layer in layers.values():
            layer._mode = None


def _sample(x: Tensor, most: int = 16384) -> Tensor:
    """Values at even distances, with both extremes, as a flat float32 tensor."""
    flat = x.detach().float().flatten()
    extremes = torch.stack([flat.min(), flat.max()])
    return torch.cat([flat[:: max(1, flat.numel() // most)], extremes])
