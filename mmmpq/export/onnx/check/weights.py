"""Layers of an ONNX graph, whoever wrote it: their weights and their names."""

import numpy as np
from onnx import ModelProto, NodeProto

from mmmpq.export.onnx.wires import Wires

LAYERS = 'Conv', 'ConvTranspose', 'Gemm', 'MatMul'
# They leave every value as it is.
RESHAPING = 'Flatten', 'Identity', 'Reshape', 'Squeeze', 'Transpose', 'Unsqueeze'
QUANTIZERS = 'QuantizeLinear', 'DequantizeLinear', 'Quant', 'BipolarQuant', 'Trunc'
# They stand around the quantizer of a weight: zero points that are no integers.
BESIDE = 'Add', 'Cast', 'Clip', 'Max', 'Min', 'Mul', 'Sub'


class Net(Wires):
    """A graph and its layers."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model.graph)
        self.nodes = list(model.graph.node)
        self.opset = max(
            (o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')),
            default=1,
        )

    def origin(self, name: str) -> str:
        """The constant that a tensor is made of, else ''."""
        while self.constant(name) is None:
            node = self.maker.get(name)
            if node is None or node.op_type not in RESHAPING + QUANTIZERS + BESIDE:
                return ''
            name = node.input[0]
        return name

    def is_layer(self, node: NodeProto) -> bool:
        """Whether it multiplies with a constant."""
        return (
            node.op_type in LAYERS
            and len(node.input) > 1
            and bool(self.origin(node.input[1]))
        )

    def layer_name(self, node: NodeProto) -> str:
        """The layer's, where the weight has its name, else the node's."""
        layer, _, rest = self.origin(node.input[1]).rpartition('.weight')
        return (layer if rest[:1] in ('', '_') else '') or named(node)

    def before(self, name: str, passing: tuple[str, ...] = RESHAPING):
        """The node that makes a tensor's values, before those in ``passing``."""
        node = self.maker.get(name)
        while node is not None and node.op_type in passing:
            node = self.maker.get(node.input[0])
        return node

    def quantizer_of(self, name: str) -> bool:
        """Whether anything quantizes a tensor, if only somewhere before it."""
        node = self.before(name, RESHAPING + BESIDE + ('MaxPool', 'Relu'))
        return node is not None and node.op_type in QUANTIZERS

    def maker_of(self, name: str) -> str:
        """What makes a tensor, for a message."""
        node = self.maker.get(name)
        if node is not None:
            return f'{node.op_type} {named(node)}'
        return 'a constant' if name in self._stored else 'the input of the graph'


def named(node: NodeProto) -> str:
    """A node's name, or what tells it apart from others."""
    return node.name or node.output[0]


def size(values: np.ndarray | None) -> int:
    return 0 if values is None else int(values.size)
