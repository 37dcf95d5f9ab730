"""The grid of a tensor that several read, from their own and from what it holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmmpq.export.onnx.ranges import Seen
from mmmpq.export.onnx.wires import Grid

COARSE = 128  # fewer levels than this: to read a finer grid would be another quantizer
SMALLEST = 1e-8  # of ranges
# Times the least squared error that a trained grid may have: 4 is a bit less, and 255
# is a little more than twice 127.
WORSE = 4.5


@dataclass(frozen=True)
class Reader:
    """How a layer quantizes its input: a grid, of which it uses the levels low … high.

    Attributes:
        layer: Its name.
    """

    layer: str
    grid: Grid
    low: int
    high: int

    @property
    def coarse(self) -> bool:
        """Whether it has 7 bits or fewer."""
        return self.high - self.low < COARSE

    @property
    def range(self) -> tuple[float, float]:
        return self.grid.value(self.low), self.grid.value(self.high)

    def levels_on(self, grid: Grid) -> tuple[int, int]:
        """The ends of its range in integers of another grid."""
        low, high = (int(grid.integer(end)) for end in self.range)
        return low, high

    def levels_of(self, grid: Grid) -> tuple[int, int]:
        """Its levels for values of another grid: within low … high, or it clips."""
        low, high = (int(self.grid.integer(end)) for end in grid.range)
        return low, high


def shared_grid(
    readers: Sequence[Reader],
    seen: Seen | None,
    fitted: tuple[float, float] | None,
    kind: str,
) -> Grid:
    """One grid of 8 bits for a tensor.

    * Layers that quantize it alike, and nobody else: theirs.
    * Layers of 8 bits: the widest of theirs, where that leaves 7 bits to the others,
      by its squared error.
    * Layers of fewer bits: of the finest of theirs, s, the step s / k with the largest
      odd k that leaves the range, if that is 3 or more, or if 1 leaves 7 bits. As k is
      odd, every border between two levels of s is a border between two of s / k, so
      that to round to s / k first and then to s is to round to s.
    * Else the range divided into the type's levels.

    The range is that of ``fitted`` and of all readers together.

    Args:
        readers: The layers that read it.
        seen: What it holds; None where layers alone read it.
        fitted: The range that others than these layers want; None likewise.
        kind: The type, 'uint8' or 'int8'.
    """
    grids = {reader.grid for reader in readers}
    if fitted is None and len(grids) == 1:
        return grids.pop()
    ends = [reader.range for reader in readers] + ([fitted] if fitted else [])
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    spread = _spread(low, high, kind)
    coarse = [reader.grid.scale for reader in readers if reader.coarse]
    if coarse:
        k = math.floor(min(coarse) / spread.scale * (1 + 1e-6))
        k -= 1 - k % 2
        if k > 0:
            aligned = _at(min(coarse) / k, low, kind)
            if k > 1 or seen is None or _serves(aligned, spread, seen):
                return aligned
    elif readers:
        widest = max(readers, key=lambda r: r.range[1] - r.range[0]).grid
        if seen is None or _serves(widest, _spread(*fitted, kind), seen):
            return widest
    return spread


def _serves(grid: Grid, best: Grid, seen: Seen) -> bool:
    """Whether it is nearly as good for what was seen as another one."""
    return _error(grid, seen) <= WORSE * _error(best, seen)


def _spread(low: float, high: float, kind: str) -> Grid:
    """The type's levels over a range."""
    if kind == 'int8':
        return _at(max(-low, high, SMALLEST) / 127, low, kind)
    return _at(max(high - low, SMALLEST) / 255, low, kind)


def _at(step: float, low: float, kind: str) -> Grid:
    step = float(np.float32(step))  # as the file has it
    return Grid(step, 0 if kind == 'int8' else round(-low / step), kind)


def _error(grid: Grid, seen: Seen) -> float:
    """Mean squared, of what was seen."""
    x = seen.sample.numpy()
    return float(np.square(grid.value(grid.integer(x)) - x).mean())
