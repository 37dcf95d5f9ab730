"""BatchNorm folded into the weights, scales and biases of the layers before it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mmmpq.costs.dry_run import dry_run
from mmmpq.costs.profile import reference_input_shape
from mmmpq.costs.tally import Tally
from mmmpq.export.integers import (
    check_calibrated,
    from_integers,
    weight_integers,
    weight_levels,
)
from mmmpq.layers import PLAIN, Island, Mode, computing, float_twin
from mmmpq.layers.base import QuantLayer
from mmmpq.layers.inputs import first_input, leaves
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.models.loading import without_batchnorm
from mmmpq.policy import SKIP
from mmmpq.quantizers import StoredQuantizer

SMALLEST = 1e-30  # in place of a scale of 0, whose inverse would be infinite


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold_batchnorm` has done.

    Attributes:
        folded (dict): BatchNorm -> the layer that it is part of now, by name.
        unfolded (dict): BatchNorm that stays -> why.
        deviation (dict): Layer -> largest difference between what layer and BatchNorm
            gave and what the layer gives now, relative to the largest output, on one
            random input each: the rounding of float32, 1e-7 to 1e-6.
    """

    folded: dict[str, str]
    unfolded: dict[str, str]
    deviation: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest deviation of a layer; 0 if nothing was folded."""
        return max(self.deviation.values(), default=0.0)


@torch.no_grad()
def fold_batchnorm(
    model: nn.Module, input_shape: Sequence[int] | None = None
) -> FoldReport:
    """Folds every BatchNorm that alone reads what one layer gives, in place.

    With g = γ / sqrt(σ² + ε), of each output channel, BN(W x + b) is::

        (g W) x + (b - μ) g + β

    The integers of a quantized weight stay what they are and g goes into its scale,
    which becomes one per channel; where g < 0, q becomes qmin + qmax - q and the zero
    point likewise, so that scales stay positive and integers within their width. The
    result is therefore exact but for the rounding of float32, per channel or not.

    Which layer and BatchNorm belong together is seen in one dry forward, from the
    tensors that pass between them.

    Args:
        model: In evaluation the same as before; its training is over.
        input_shape: (C, H, W); default: the reference input of its kind.

    Returns:
        FoldReport.

    Raises:
        ValueError: The model does not run on such an input, or is not calibrated.
    """
    folded, unfolded = _pairs(model, tuple(input_shape or reference_input_shape(model)))
    modules = dict(model.named_modules())
    layers = {n: modules[n] for n in folded.values()}
    check_calibrated({n: m for n, m in layers.items() if isinstance(m, QuantLayer)})
    deviation = {}
    was_training = {m: m.training for m in modules.values()}
    for module in modules.values():
        module.training = False
    islands = [m for m in modules.values() if isinstance(m, Island)]
    with computing(islands, Mode.FLOAT):  # they stand behind norms, and stay there
        for name, layer_name in folded.items():
            norm, layer = modules[name], modules[layer_name]
            x = _input_of(layer)
            target = norm(layer(x)).float()
            without_batchnorm(model, {name: layer_name})
            _fold(layer, norm)
            error = (layer(x).float() - target).abs().max() / target.abs().max()
            deviation[layer_name] = float(error.nan_to_num())
    for module, training in was_training.items():
        module.training = training
    return FoldReport(folded, unfolded, deviation)


def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    inverse = (norm.running_var.double() + norm.eps).rsqrt()
    gain = inverse if norm.weight is None else norm.weight.double() * inverse
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift += norm.bias.double()
    layer.bias.copy_(layer.bias * gain + shift)
    gain = gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    out_dim = getattr(layer, 'out_dim', 0)
    integers = weight_integers(layer) if isinstance(layer, QuantLayer) else None
    if integers is None:
        layer.weight.copy_(layer.weight * outputs_first(gain, out_dim))
        return
    q, scale, zero = integers
    low, high = weight_levels(layer)
    negative = gain < 0
    q = torch.where(negative, low + high - q.int(), q.int())
    zero = torch.zeros_like(scale) if zero is None else zero
    zero = torch.where(negative, low + high - zero, zero)
    scale = (scale.double() * gain.abs()).float().clamp_min(SMALLEST)
    weight = from_integers(q, scale, zero, layer.weight.dtype)
    layer.weight.copy_(outputs_first(weight, out_dim))
    quantizer = StoredQuantizer((layer.precision.w_bits,))
    quantizer.set_grid(scale, zero, (low, high))
    layer.store(quantizer)


def _input_of(layer: nn.Module) -> Tensor:
    """A small random input, over all levels of the layer's activation quantizer."""
    if isinstance(layer, nn.Linear):
        shape = (16, layer.in_features)
    else:
        sides = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = (1, layer.in_channels, *(2 * k * d + 1 for k, d in sides))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(layer.weight)


def _pairs(
    model: nn.Module, input_shape: tuple[int, ...]
) -> tuple[dict[str, str], dict[str, str]]:
    """BatchNorms that can be folded, with their layers; the others, with a reason."""
    names = {m: n for n, m in model.named_modules()}
    flow = _Flow()
    hooks = [model.register_forward_hook(flow.returned)]
    for module in names:
        if isinstance(module, (*PLAIN, QuantLayer)):
            hooks.append(module.register_forward_hook(flow.made))
        elif isinstance(module, _BatchNorm):
            hooks.append(
                module.register_forward_pre_hook(flow.normalised, with_kwargs=True)
            )
            hooks.append(module.register_forward_hook(flow.after))
    try:
        with flow:
            dry_run(model, input_shape, 100, Tally())
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[nn.Module, set[tuple[nn.Module, str]]] = {}
    for name, module in modules.items():
        parent, _, child = name.rpartition('.')
        places.setdefault(module, set()).add((modules[parent], child))
    weights = Counter(id(m._parameters.get('weight')) for m in names)
    folded, unfolded = {}, {}
    for norm in (m for m in names if isinstance(m, _BatchNorm)):
        makers = flow.makers.get(norm, set())
        layer = next(iter(makers), None)
        if norm.running_var is None:
            unfolded[names[norm]] = 'it has no running statistics'
        elif not makers:
            unfolded[names[norm]] = 'the forward does not use it'
        elif len(makers) > 1 or layer is None:
            unfolded[names[norm]] = 'it does not follow one conv or linear layer alone'
        elif len(places[norm]) > 1:
            unfolded[names[norm]] = 'it is in more than one place of the model'
        elif weights[id(layer.weight)] > 1:
            reason = f'{names[layer]} shares its weight with another layer'
            unfolded[names[norm]] = reason
        elif getattr(layer, 'precision', None) == SKIP:
            unfolded[names[norm]] = 'its block is skipped'
        elif not _is_affine(layer):
            unfolded[names[norm]] = f'{names[layer]} computes more than W x + b'
        elif flow.readers[layer] != {norm}:
            unfolded[names[norm]] = f'{names[layer]} is read by others as well'
        else:
            folded[names[norm]] = names[layer]
    return folded, unfolded


def _is_affine(layer: nn.Module) -> bool:
    """Whether it computes W x + b; a float one, by what would take its place."""
    if not isinstance(layer, QuantLayer):
        _, layer = float_twin(layer) or (None, None)
    return getattr(layer, 'affine', False)


class _Flow(TorchFunctionMode):
    """Which layer made what a BatchNorm reads, and what else reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: dict[nn.Module, set[nn.Module | None]] = {}
        self.readers: dict[nn.Module, set[nn.Module | None]] = {}
        self._norm: nn.Module | None = None

    def made(self, layer: nn.Module, _: Any, out: Tensor) -> None:
        self.readers.setdefault(layer, set())
        out._made_by = layer

    def normalised(self, norm: nn.Module, args: tuple, kwargs: dict) -> None:
        maker = getattr(first_input(args, kwargs), '_made_by', None)
        self.makers.setdefault(norm, set()).add(maker)
        self._norm = norm

    def after(self, *_: Any) -> None:
        self._norm = None

    def returned(self, _: nn.Module, __: Any, out: Any) -> None:
        self._read((out,))

    def _read(self, values: Iterable[Any]) -> None:
        for x in leaves(values):
            maker = getattr(x, '_made_by', None)
            if maker is not None:
                self.readers[maker].add(self._norm)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) for x in leaves(out)):  # not a shape, say
            self._read((args, kwargs or {}))
        return out
