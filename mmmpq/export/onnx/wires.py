"""Who makes and who reads each tensor of an ONNX graph, and what is constant in it."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from mmmpq.export.onnx.levels import limits


@dataclass(frozen=True)
class Grid:
    """s (q - point) for the integers q of a type of 8 bits."""

    scale: float
    point: int
    type: str

    def value(self, q: int) -> float:
        return self.scale * (q - self.point)

    @property
    def range(self) -> tuple[float, float]:
        """The values of the type's lowest and highest integer."""
        low, high = (self.value(q) for q in limits(self.type))
        return low, high

    def integer(self, x: np.ndarray | float) -> np.ndarray:
        """As QuantizeLinear rounds and saturates."""
        with np.errstate(over='ignore'):
            q = np.rint(np.float32(x) / np.float32(self.scale)) + self.point
        return np.clip(q, *limits(self.type)).astype(np.int64)


class Wires:
    """Of a graph.

    Attributes:
        maker: The node that makes a tensor, by its name.
        readers: The nodes that read it; empty where none does.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self.outputs = {output.name for output in graph.output}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is one, else None."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == 'Identity':
            return self.constant(node.input[0])
        if node.op_type != 'Constant':
            return None
        values = [a for a in node.attribute if a.name == 'value']
        return numpy_helper.to_array(values[0].t) if values else None

    def grid(self, node: NodeProto) -> Grid | None:
        """Of a QuantizeLinear or DequantizeLinear of 8 bits, one for all channels."""
        if len(node.input) < 3:
            return None
        scale, point = (self.constant(name) for name in node.input[1:])
        if scale is None or point is None or scale.ndim or point.dtype.itemsize > 1:
            return None
        kind = point.dtype.name
        if kind not in ('int8', 'uint8'):
            return None
        return Grid(float(scale), int(point), kind)

    def only_reader(self, name: str) -> NodeProto | None:
        """The node that alone reads a tensor, which is no output of the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None
