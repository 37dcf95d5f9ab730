"""The quantizers of islands, written into an ONNX graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto

from mmmpq.export.onnx.builder import Builder
from mmmpq.export.onnx.levels import limits
from mmmpq.export.onnx.shared import Reader
from mmmpq.export.onnx.target import Target
from mmmpq.export.onnx.wires import Grid, Wires

# They ask for the shape of what they read, and for nothing else of it.
ASKING = 'Shape', 'Size'


@dataclass
class Input:
    """What quantizes the input of a layer.

    Attributes:
        reader: How it does.
        nodes: QuantizeLinear, DequantizeLinear, and Clip before or between them.
    """

    reader: Reader
    nodes: list[NodeProto]


@dataclass
class Island:
    """Tensors of one grid.

    Attributes:
        tensors: By name, the inputs of layers that read it.
        measured: Whether others than layers read one of them.
        is_output: Whether one is an output of the graph.
        grid: Of all.
        trained: Whether the net was trained with it. Layers of another then read its
            levels on their own grid, of whatever width.
    """

    tensors: dict[str, list[Input]]
    measured: bool = False
    is_output: bool = False
    grid: Grid | None = None
    trained: bool = False

    @property
    def name(self) -> str:
        """Of the first tensor, from which the others are made."""
        return next(iter(self.tensors))

    @property
    def readers(self) -> list[Reader]:
        return [each.reader for inputs in self.tensors.values() for each in inputs]


def rewire(
    model: ModelProto, wires: Wires, islands: Sequence[Island], target: Target
) -> dict[str, Any]:
    """Writes a quantizer behind each tensor of ``islands``, for all who read it.

    Returns:
        'tensors', 'shared' and 'requantized' of :func:`.islands.add_islands`.
    """
    writer = _Writer(wires, target)
    writer.write(model, islands)
    return dict(
        tensors=writer.tensors,
        shared=sorted(writer.shared),
        requantized=sorted(writer.requantized),
    )


class _Writer(Builder):
    """Writes the quantizers of islands behind the tensors that they are of."""

    def __init__(self, wires: Wires, target: Target) -> None:
        super().__init__()
        self.wires, self.target = wires, target
        self.tensors = 0
        self.shared: set[str] = set()
        self.requantized: set[str] = set()
        self.shapes: dict[str, str] = {}  # what is asked in the place of a tensor
        self.done: dict[tuple, str] = {}

    def write(self, model: ModelProto, islands: Sequence[Island]) -> None:
        island_of = {name: island for island in islands for name in island.tensors}
        inputs = [
            each for i in islands for group in i.tensors.values() for each in group
        ]
        own = {id(node) for each in inputs for node in each.nodes}
        for node in model.graph.node:
            if id(node) in own:
                continue
            if node.op_type in ASKING:
                node.input[0] = self.shapes.get(node.input[0], node.input[0])
            self.keep(node)
            for i, name in enumerate(node.output):
                if name in island_of:
                    self.quantize(node, i, island_of[name])
        self.finish(model.graph)

    def quantize(self, node: NodeProto, i: int, island: Island) -> None:
        """Puts the island's quantizer behind one output of a node."""
        name = raw = node.output[i]
        grid = island.grid
        is_output = name in self.wires.outputs
        if is_output:
            raw = node.output[i] = f'{name}/float'
        q = self.pair('QuantizeLinear', raw, name, grid)
        out = self.pair('DequantizeLinear', q, name, grid, name if is_output else None)
        self.renamed[name], self.shapes[name] = out, q
        for each in island.tensors[name]:
            read = self.read(each.reader, q, out, island)
            self.renamed[each.nodes[-1].output[0]] = read
        self.tensors += {reader.grid for reader in island.readers} != {grid}

    def read(self, reader: Reader, q: str, out: str, island: Island) -> str:
        """What a layer reads of a tensor with integers ``q`` and values ``out``."""
        grid, own, low, high = island.grid, reader.grid, reader.low, reader.high
        keeps_own = reader.coarse or island.trained
        slack = 0 if keeps_own else 1  # as -127 … 127, which int8 exceeds by one
        if own != grid and not keeps_own:
            own, (low, high) = grid, reader.levels_on(grid)
            self.shared.add(reader.layer)
        elif own != grid:
            self.requantized.add(reader.layer)
        least, most = limits(own.type) if own == grid else reader.levels_of(grid)
        clips = low - slack > least or high + slack < most
        key = q, own, clips and (low, high)
        if key not in self.done:
            self.done[key] = self.written(q, out, grid, own, key[2], reader.layer)
        return self.done[key]

    def written(
        self,
        q: str,
        out: str,
        grid: Grid,
        own: Grid,
        clip: tuple[int, int] | bool,
        layer: str,
    ) -> str:
        base = f'{q}/{layer}'
        in_float = bool(clip) and self.target.clip == 'float'
        if in_float:
            values = (('min', own.value(clip[0])), ('max', own.value(clip[1])))
            ends = [self.floats(f'{base}_{end}', value) for end, value in values]
            out = self.node('Clip', [out, *ends], base)
        if own != grid and not in_float and self.target.adds_zero:
            zero = self.integers(f'{base}/zero', own.point, grid.type)
            zero = self.pair('DequantizeLinear', zero, f'{base}/zero', own)
            out = self.node('Add', [out, zero], base)
        if own != grid or in_float:
            q = self.pair('QuantizeLinear', out, base, own)
        if clip and not in_float:
            levels = zip(('min', 'max'), clip, strict=True)
            ends = [self.integers(f'{base}_{e}', v, own.type) for e, v in levels]
            q = self.node('Clip', [q, *ends], base)
        return self.pair('DequantizeLinear', q, base, own)

    def pair(
        self, kind: str, x: str, base: str, grid: Grid, output: str | None = None
    ) -> str:
        """A QuantizeLinear or a DequantizeLinear."""
        scale = self.floats(f'{base}/scale', grid.scale)
        point = self.integers(f'{base}/zero_point', grid.point, grid.type)
        return self.node(kind, [x, scale, point], base, output)
