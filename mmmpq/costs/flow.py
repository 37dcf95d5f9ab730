"""What becomes of layers in a forward: which are called, by-passed, or the last."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn, ops
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmmpq.costs.dry_run import dry_run
from mmmpq.costs.layer_types import CONVS, layer_type
from mmmpq.costs.profile import counted_layers, reference_input_shape
from mmmpq.costs.tally import Tally

SIDES = 64, 256, 32  # of the images that are tried first: a small one is fast
SUMS = {ops.aten.add.Tensor, ops.aten.add_.Tensor}
SIZES = ('img_size', 'image_size', 'input_size', 'init_input_size')


NONE: frozenset[str] = frozenset()


class _Made(NamedTuple):
    """The layers that something is of: all, and those that are its ends."""

    storage: StorageWeakRef | None
    makers: frozenset[str]
    ends: frozenset[str]


NOTHING = _Made(None, NONE, NONE)


class Flow(TorchDispatchMode):
    """Follows what layers give from operation to operation.

    Args:
        model: It begins anew with every forward.
        layers: The layers to follow, with their names.

    Attributes:
        called: Names of layers in the order of their first calls.
        read: Layers whose weight is read outside of their own forward.
        readers: Of layers, those that something of their output reaches first.
        returned: Layers of whose output something is returned, with no other layer
            in between; of a sum, the one that was called last.
    """

    def __init__(self, model: nn.Module, layers: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.layers = layers
        self._owners: dict[int, set[str]] = {}
        for layer, name in layers.items():
            weight = layer._parameters.get('weight')
            if weight is not None:
                self._owners.setdefault(id(weight), set()).add(name)
        self._begin()
        self._hooks = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
        ]
        for layer in layers:
            self._hooks += [
                layer.register_forward_pre_hook(self._enter),
                layer.register_forward_hook(self._leave),
            ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def last(self) -> set[str]:
        """Layers with no other between them and an output, or a loss, and depthwise
        ones in front of these alone."""
        found = {n for n in self.called if n not in self.readers} | self.returned
        # A separable convolution is one layer.
        depthwise = {n for m, n in self.layers.items() if _is_depthwise(m)}
        return found | {n for n in depthwise if found >= self.readers.get(n, {n})}

    def _begin(self, *_: Any) -> None:
        self.called: list[str] = []
        self.read: set[str] = set()
        self.readers: dict[str, set[str]] = {}
        self.returned: set[str] = set()
        self._inside: list[str] = []
        # By address of a storage, which is not used again while a reference is kept.
        self._made: dict[int, _Made] = {}

    def _end(self, _: nn.Module, __: Any, out: Any) -> None:
        for x in _tensors(out):
            self.returned |= self._of(x).ends

    def _enter(self, layer: nn.Module, _: tuple) -> None:
        self._inside.append(self.layers[layer])

    def _leave(self, layer: nn.Module, _: tuple, out: Any) -> None:
        name = self._inside.pop()
        if name in self.called:
            self.called.remove(name)
        self.called.append(name)
        self._note(out, frozenset([name]), frozenset([name]))

    def _of(self, x: Tensor) -> '_Made':
        return self._made.get(x.untyped_storage()._cdata, NOTHING)

    def _note(self, out: Any, makers: frozenset[str], ends: frozenset[str]) -> None:
        for x in _tensors(out):
            storage = x.untyped_storage()
            self._made[storage._cdata] = _Made(StorageWeakRef(storage), makers, ends)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        for x in given:
            owners = self._owners.get(id(x))
            if owners and not owners & set(self._inside):
                self.read |= owners
        of = [self._of(x) for x in given]
        makers = NONE.union(*(m.makers for m in of))
        ends = NONE.union(*(m.ends for m in of))
        if func in SUMS and ends:  # what a residual block adds to is not its output
            ends = frozenset([max(ends, key=self.called.index)])
        for maker in makers if self._inside else ():
            self.readers.setdefault(maker, set()).add(self._inside[-1])
        out = func(*args, **kwargs)
        self._note(out, makers, ends)
        return out


def flow_of(model: nn.Module) -> Flow:
    """That of one image through a float model, without arithmetic.

    The image is a small one, the reference input, or as large as the model says that
    it wants: the first with which it runs.

    Raises:
        ValueError: It runs with none of them, or calls no layer.
    """
    flow = Flow(model, counted_layers(model))
    errors = []
    try:
        for shape in _shapes(model):
            try:
                dry_run(model, shape, 100, Tally(), flow)
            except ValueError as error:
                errors.append(error)
                continue
            if flow.called:
                return flow
            errors.append(ValueError('its forward calls no layer'))
    finally:
        flow.close()
    raise errors[0]


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    layers = (m for m in model.modules() if isinstance(m, (*CONVS, nn.Linear)))
    stem = next(layers, None)
    if isinstance(stem, nn.Linear):
        yield (stem.in_features,)
    elif stem is not None and not isinstance(stem, nn.Conv2d):
        yield stem.in_channels, *(min(SIDES),) * len(stem.kernel_size)
    usual, *size = reference_input_shape(model)
    sizes = [*((s, s) for s in SIDES), tuple(size)]
    for module in model.modules():
        for key in SIZES:
            side = getattr(module, key, None)
            side = (side, side) if isinstance(side, int) else side
            if isinstance(side, (list, tuple)) and len(side) == 2:
                sizes.append(tuple(side))
    for channels in dict.fromkeys([getattr(stem, 'in_channels', usual), usual]):
        for size in dict.fromkeys(sizes):
            yield channels, *size


def _is_depthwise(layer: nn.Module) -> bool:
    return layer_type(layer).startswith('Depthwise')


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))
