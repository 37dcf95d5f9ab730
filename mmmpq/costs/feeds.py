"""Which layers hand their outputs on to which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmmpq.costs.dry_run import dry_run
from mmmpq.costs.flow import Flow
from mmmpq.costs.layer_types import macs_of
from mmmpq.costs.profile import counted_layers, reference_call
from mmmpq.costs.tally import Tally

Size = tuple[int, ...]


@dataclass(frozen=True)
class Feed:
    """What one layer hands on to another that reads it in the same shape.

    Between them is at most what acts on single elements, such as BatchNorm, an
    activation or a sum; a tensor that is a sum of k layers counts 1 / k for each.

    Attributes:
        first, second (str): Names of the layers.
        first_size, second_size (tuple): Spatial sizes of their inputs.
        summed (bool): Whether the second reads a sum, of several layers.
        inputs (float): Inputs (images, RoIs, windows) of the second that are so made.
    """

    first: str
    second: str
    first_size: Size
    second_size: Size
    summed: bool
    inputs: float


class _Call(NamedTuple):
    name: str
    size: Size
    out: Size


class _Handing(Flow):
    """Counts what is handed on, by names and sizes, and what each layer is given."""

    def _begin(self, *_: Any) -> None:
        super()._begin()
        self.handed: Counter = Counter()
        self.given: Counter = Counter()

    def _leave(self, layer: nn.Module, args: tuple, out: Any) -> None:
        super()._leave(layer, args, out)
        if not (args and isinstance(args[0], Tensor) and isinstance(out, Tensor)):
            return
        name, x = self.called[-1], args[0]
        _, size, inputs, _ = macs_of(layer, args, {}, out)
        self.given[name, size] += inputs
        makers = self._of(x).makers
        for maker in makers:
            if isinstance(maker, _Call) and maker.out == tuple(x.shape):
                key = maker.name, name, maker.size, size, len(makers) > 1
                self.handed[key] += inputs / len(makers)
        call = _Call(name, size, tuple(out.shape))
        self._note(out, frozenset([call]), frozenset([name]))


def feeds(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    proposals: int | None = None,
) -> list[Feed]:
    """All that layers hand on in one dry forward, as :func:`profile` counts it.

    Args:
        model, input_shape, proposals: As of :func:`profile`.

    Raises:
        ValueError: If the model cannot run on such an input alone.
    """
    handing, tally = _Handing(model, counted_layers(model)), Tally()
    handles = tally.watch(handing.layers)
    try:
        dry_run(model, *reference_call(model, input_shape, proposals), tally, handing)
    finally:
        handing.close()
        for handle in handles:
            handle.remove()
    return [
        # of a RoI head, as many as the reference proposals make
        Feed(
            *key, tally.calls[key[1]].sizes[key[3]] * n / handing.given[key[1], key[3]]
        )
        for key, n in handing.handed.items()
    ]
