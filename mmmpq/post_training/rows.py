"""What layers see and give at some of their output's positions, pass by pass."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mmmpq.layers import QuantLayer, first_input
from mmmpq.models.task_loss import raw_outputs

# Of a layer and each of its calls, over all batches: so many samples, and of many
# inputs (depthwise layers, with few to an output) so many values, but not too few.
ROWS, VALUES, FEWEST = 8192, 2**25, 1024
DOUBLE = 1024  # inputs to an output, up to which sums are of float64


class _Found(Exception):
    """The operands of a layer's operation; or, a pass has come as far as it should."""


class Gram(NamedTuple):
    """What least squares know of a layer of G groups, with d inputs to each output.

    Attributes:
        xx: Covariance of its quantized inputs, (G, d, d).
        xy: Their covariance with what the layer should give, (G, d, C/G).
        yy: Variance of the latter, (G, C/G).
        x, y: The means, (G, 1, d) and (G, 1, C/G).
        rows: Count of the samples.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor
    rows: int


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """Removes hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def outputs_of(
    model: nn.Module, layers: dict[str, nn.Module], batches: Sequence[Any]
) -> 'OrderedDict[str, list[list[Tensor]]]':
    """Samples of what layers give: for each, in the order of their first calls, for
    each batch, of each call (rows, C). Layers that no batch reaches are left out.

    Args:
        model: In evaluation mode; as it computes now.
        layers: By name.
        batches: As of :func:`mmmpq.models.task_loss.raw_outputs`.
    """
    samples: OrderedDict[str, list[list[Tensor]]] = OrderedDict()
    now = 0

    def hook(name: str) -> Any:
        def keep(layer: nn.Module, _: Any, out: Tensor) -> None:
            calls = samples.setdefault(name, [[] for _ in batches])[now]
            rows = _flat(layer, out)
            most = _quota(layer, len(batches))
            places = _places(len(rows), most, name, now, len(calls))
            calls.append(rows[places].float())

        return keep

    with hooked([m.register_forward_hook(hook(n)) for n, m in layers.items()]):
        for now, batch in enumerate(batches):  # noqa: B007
            raw_outputs(model, batch)
    return samples


@torch.no_grad()
def grams_of(
    model: nn.Module,
    name: str,
    layer: QuantLayer,
    batches: Sequence[Any],
    targets: Sequence[Sequence[Tensor]],
) -> list[Gram]:
    """What least squares need of one layer, from passes that end where it was called:
    of every other batch, and of those between; all of them together: :func:`pooled`.

    Args:
        model: In evaluation mode; the layers before this one compute as they will.
        name: Of the layer, as it was in :func:`outputs_of`.
        layer: Its input is quantized here.
        batches, targets: Of :func:`outputs_of`, the latter of this layer.
    """
    folds: list[list[Tensor]] = [[], []]
    rows = [0, 0]
    call = now = 0

    def add(layer: QuantLayer, args: tuple, kwargs: dict) -> None:
        nonlocal call
        x = layer.a_quantizer(first_input(args, kwargs), layer.precision.a_bits)
        y = targets[now][call]
        where = _quota(layer, len(batches)), name, now, call
        patches, places = _patches(layer, x, where)
        call += 1
        if len(places) == len(y):  # else the net has drifted to other proposals
            groups = len(patches)
            y = y.reshape(len(y), groups, -1).transpose(0, 1)
            each = _sums(patches, y)
            if folds[now % 2]:
                torch._foreach_add_(folds[now % 2], each)
            else:
                folds[now % 2] = each
            rows[now % 2] += len(places)
        if call == len(targets[now]):
            raise _Found

    with hooked([layer.register_forward_pre_hook(add, with_kwargs=True)]):
        for now, batch in enumerate(batches):
            call = 0
            if targets[now]:
                with suppress(_Found):
                    raw_outputs(model, batch)
    if not any(rows):
        raise ValueError(f'{name}: the quantized net does not reach it any more')
    return [_centred(*fold) for fold in zip(folds, rows, strict=True) if fold[1]]


@torch.no_grad()
def gram_of_call(layer: nn.Module, x: Tensor, seen: Tensor, name: str) -> Gram:
    """Of one call of a layer: what it sees, with what it makes of ``x`` as the target.

    Args:
        layer: Computes with its ``weight``.
        x: Its input.
        seen: What it sees in place of that; ``x`` itself, or its quantized values.
        name: Of the layer, which says what positions are looked at.
    """
    where = _quota(layer, 1), name, 0, 0
    patches, _ = _patches(layer, x, where)
    groups, rows, d = patches.shape
    y = patches @ layer.weight.reshape(groups, -1, d).transpose(1, 2)
    if layer.bias is not None:
        y = y + layer.bias.reshape(groups, 1, -1)
    if seen is not x:
        patches, _ = _patches(layer, seen, where)
    return _centred(_sums(patches, y), rows)


def pooled(grams: Sequence[Gram]) -> Gram:
    """Of the samples of all of them."""
    rows = sum(g.rows for g in grams)

    def mean(parts: Iterable[Tensor]) -> Tensor:
        return sum(part * (g.rows / rows) for part, g in zip(parts, grams, strict=True))

    x, y = mean(g.x for g in grams), mean(g.y for g in grams)
    xx = mean(g.xx + (g.x - x).transpose(1, 2) @ (g.x - x) for g in grams)
    xy = mean(g.xy + (g.x - x).transpose(1, 2) @ (g.y - y) for g in grams)
    yy = mean(g.yy + (g.y - y)[:, 0].square() for g in grams)
    return Gram(xx, xy, yy, x, y, rows)


def _sums(patches: Tensor, y: Tensor) -> list[Tensor]:
    """Over samples (G, rows, d) of inputs and (G, rows, C/G) of outputs."""
    if patches.shape[-1] <= DOUBLE:
        patches, y = patches.double(), y.double()
    t = patches.transpose(1, 2)
    sums = [t @ patches, t @ y, (y * y).sum(1)]
    return [*sums, patches.sum(1, keepdim=True), y.sum(1, keepdim=True)]


def _centred(sums: list[Tensor], rows: int) -> Gram:
    """Of sums over samples."""
    xx, xy, yy, x, y = (s / rows for s in sums)
    xx = xx - x.transpose(1, 2) @ x
    xy = xy - x.transpose(1, 2) @ y
    yy = (yy - y[:, 0].square()).clamp_min(0)
    return Gram(*(t.float() for t in (xx, xy, yy, x, y)), rows)


def _flat(layer: nn.Module, out: Tensor) -> Tensor:
    """The outputs of all positions (rows, C)."""
    channels = out if isinstance(layer, nn.Linear) else out.movedim(1, -1)
    return channels.reshape(-1, channels.shape[-1])


def _quota(layer: nn.Module, batches: int) -> int:
    """Samples of one call."""
    groups = getattr(layer, 'groups', 1)
    values = layer.weight[0].numel() * groups
    return -(-max(FEWEST, min(ROWS, VALUES // values)) // batches)


def _places(count: int, most: int, name: str, batch: int, call: int) -> Tensor:
    """Which of ``count`` positions are looked at, at most: always the same."""
    if count <= most:
        return torch.arange(count)
    seed = crc32(f'{name} {batch} {call}'.encode())
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort()[0]


class _Operands(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.conv2d, F.linear):
            raise _Found(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _patches(layer: QuantLayer, x: Tensor, where: tuple) -> tuple[Tensor, Tensor]:
    """What the outputs at the sampled positions are linear in (G, rows, d), and these.

    The layer says by its own forward how it pads and what it convolves.
    """
    try:
        with _Operands():
            layer.compute(x, layer.weight, layer.bias)
    except _Found as call:
        func, args, kwargs = call.args
    x = args[0]
    if func is F.linear:
        rows = x.reshape(-1, x.shape[-1])
        places = _places(len(rows), *where)
        return rows[places][None], places
    names = ('stride', 'padding', 'dilation', 'groups')
    options = dict(zip(names, args[3:], strict=False)) | kwargs
    stride, dilation = (_pair(options.get(n, 1)) for n in ('stride', 'dilation'))
    size = layer.weight.shape[2:]
    spans = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    x = F.pad(x, _margins(options.get('padding', 0), spans))
    height, width = (
        (n - span - 1) // s + 1
        for n, span, s in zip(x.shape[2:], spans, stride, strict=True)
    )
    places = _places(len(x) * height * width, *where)
    image, at = places // (height * width), places % (height * width)
    down = torch.arange(size[0]) * dilation[0]
    right = torch.arange(size[1]) * dilation[1]
    patches = x.movedim(1, -1)[
        image[:, None, None],
        (at // width * stride[0])[:, None, None] + down[:, None],
        (at % width * stride[1])[:, None, None] + right,
    ]  # (rows, kh, kw, C_in)
    groups = options.get('groups', 1)
    patches = patches.movedim(-1, 1).reshape(len(places), groups, -1)
    return patches.transpose(0, 1), places


def _margins(padding: int | str | Sequence[int], spans: Sequence[int]) -> list[int]:
    """Left, right, top, bottom."""
    if padding == 'same':
        each = [(span // 2, span - span // 2) for span in spans]
    else:
        each = [(p, p) for p in _pair(0 if padding == 'valid' else padding)]
    return [*each[1], *each[0]]
