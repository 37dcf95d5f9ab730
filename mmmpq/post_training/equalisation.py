"""Consecutive layers whose ranges are made level, the float net as before."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmmpq.costs.dry_run import dry_run
from mmmpq.costs.profile import reference_input_shape
from mmmpq.costs.tally import Tally
from mmmpq.layers import PLAIN
from mmmpq.layers.inputs import leaves
from mmmpq.post_training.rows import hooked

SWEEPS, LEVEL = 50, 1e-4  # of chains: at most so many, until no log s is larger
AFFINE = {F.conv1d, F.conv2d, F.conv3d, F.linear}
# f(s x) = s f(x) for s > 0, channel by channel.
HOMOGENEOUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.prelu}
HOMOGENEOUS |= {F.leaky_relu, F.leaky_relu_, F.dropout, F.max_pool2d, torch.max_pool2d}
HOMOGENEOUS |= {F.avg_pool2d, F.adaptive_avg_pool2d}
FLAT = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape}  # (N, C, 1, 1)


class _Made(NamedTuple):
    """What a tensor is of: a layer's channels, which are its side ``dim``."""

    layer: nn.Module
    dim: int


@torch.no_grad()
def equalise(
    model: nn.Module, input_shape: Sequence[int] | None = None
) -> list[tuple[str, str]]:
    """Levels the ranges of consecutive layers, in place; the outputs stay.

    Of y = W₂ f(W₁ x + b₁) with f(s x) = s f(x) for s > 0, each channel i between the
    layers is scaled by::

        s_i = sqrt(r₁_i / r₂_i);   W₁, b₁ ← W₁ / s, b₁ / s;   W₂ ← W₂ s

    where r₁_i = max |W₁| of output channel i, r₂_i = max |W₂| of input channel i: both
    become sqrt(r₁_i r₂_i). Chains, such as those with depthwise convolutions, are swept
    until they are level. Between a pair may be nothing, ReLU, LeakyReLU, PReLU, dropout
    and pooling; what the first one gives must be read by the second alone. Layers that
    share their weight, or change it before they use it, are left out.

    Source: Data-Free Quantization Through Weight Equalization and Bias Correction,
    2019, arXiv 1906.04721, section 4.1.

    Args:
        model: A float one, its BatchNorms folded.
        input_shape: (C, H, W); default: the reference input of its kind.

    Returns:
        Names of the layers of each pair.

    Raises:
        ValueError: The model does not run on such an input.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> equalise(net, (3, 8, 8))
        [('0', '2')]
    """
    pairs = pairs_of(model, tuple(input_shape or reference_input_shape(model)))
    for _ in range(SWEEPS):
        moved = [_level(first, second) for first, second in pairs]
        if max(moved, default=0.0) < LEVEL:
            break
    names = {module: name for name, module in model.named_modules()}
    return [(names[first], names[second]) for first, second in pairs]


def pairs_of(
    model: nn.Module, input_shape: tuple[int, ...]
) -> list[tuple[nn.Module, nn.Module]]:
    """Layers that can be equalised, seen in one dry forward."""
    flow = _Flow(model)
    hooks = [
        model.register_forward_pre_hook(flow.begin),
        model.register_forward_hook(lambda _, __, out: flow.read(out)),
    ]
    with hooked(hooks), flow:
        dry_run(model, input_shape, 100, Tally())
    pairs = ((first, readers) for first, readers in flow.readers.items())
    return [
        (first, second)
        for first, (second, *others) in ((f, [*r]) for f, r in pairs if r)
        if second is not None
        and not others
        and flow.makers[second] == {first}
        and not {first, second} & flow.changed
    ]


def _level(first: nn.Module, second: nn.Module) -> float:
    """Levels a pair, and says how far from it it was: the largest |log s|."""
    groups = getattr(second, 'groups', 1)
    w = second.weight
    w = w.view(groups, w.shape[0] // groups, w.shape[1], -1)
    before = first.weight.flatten(1).abs().amax(1)
    after = w.abs().amax((1, 3)).flatten()
    scale = (before.double() / after.double()).sqrt().float()
    scale[(before == 0) | (after == 0)] = 1.0  # nothing passes, or there is no range
    first.weight.div_(scale.reshape(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.div_(scale)
    w.mul_(scale.reshape(groups, 1, -1, 1))
    return float(scale.log().abs().max())


class _Flow(TorchFunctionMode):
    """From whose weight tensors come, channel by channel, and what reads them.

    It begins anew with every forward of the model.

    Attributes:
        readers: Of each layer, those whose weight its outputs are multiplied by; None
            for whatever else is done with them.
        makers: Of each layer, those whose outputs it reads, likewise.
        changed: Layers whose weight is used otherwise than as the weight of a layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        count = Counter(id(m._parameters.get('weight')) for m in model.modules())
        layers = (m for m in model.modules() if isinstance(m, PLAIN))
        weights = ((id(m._parameters.get('weight')), m) for m in layers)
        self._owners = {key: m for key, m in weights if count[key] == 1}
        self.begin()

    def begin(self, *_: Any) -> None:
        layers = self._owners.values()
        self.readers: dict[nn.Module, set[nn.Module | None]] = {
            m: set() for m in layers
        }
        self.makers: dict[nn.Module, set[nn.Module | None]] = {m: set() for m in layers}
        self.changed: set[nn.Module] = set()

    def read(self, values: Any) -> None:
        """By what is no layer."""
        for x in leaves(values):
            if made := getattr(x, '_made', None):
                self.readers[made.layer].add(None)
            if id(x) in self._owners:
                self.changed.add(self._owners[id(x)])

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) for x in leaves(out)):  # a shape, say
            return out
        operands = [*leaves((args, kwargs)), None]
        x, made = operands[0], getattr(operands[0], '_made', None)
        if func in AFFINE and id(operands[1]) in self._owners:
            layer = self._owners[id(operands[1])]
            dim = x.dim() - 1 if func is F.linear else x.dim() - layer.weight.dim() + 1
            maker = made.layer if made and made.dim == dim else None
            self.makers[layer].add(maker)
            if made:
                self.readers[made.layer].add(layer if maker else None)
            self.read(operands[2:])
            out._made = _Made(layer, dim)
        elif made and (
            func in HOMOGENEOUS or (func in FLAT and out.shape == x.shape[:2])
        ):
            self.read(operands[1:])
            out._made = made
        else:
            self.read(operands)
        return out
