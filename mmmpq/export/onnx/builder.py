"""New nodes and initializers of a graph, and what of the old ones goes."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from mmmpq.export.integers import check_calibrated
from mmmpq.export.onnx.levels import packed
from mmmpq.export.onnx.trace import MARKER
from mmmpq.layers.base import QuantLayer


class Builder:
    """Nodes in their order, and initializers by name, for a graph.

    Attributes:
        renamed: What stands for a tensor of the graph, by its old name.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.renamed: dict[str, str] = {}

    def keep(self, node: NodeProto) -> None:
        """Takes over a node of the graph, which reads what stands for its inputs."""
        node.input[:] = [self.renamed.get(name, name) for name in node.input]
        self.nodes.append(node)

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        base: str,
        output: str | None = None,
        **attributes,
    ) -> str:
        """Adds a node and returns the name of its output; by default, its own."""
        name = f'{base}/{kind}_{len(self.nodes)}'
        node = helper.make_node(kind, inputs, [output or name], name, **attributes)
        self.nodes.append(node)
        return output or name

    def floats(self, name: str, values: np.ndarray | float) -> str:
        values = np.asarray(values, '<f4')
        return self._tensor(name, TensorProto.FLOAT, values.shape, values.tobytes())

    def integers(self, name: str, values: np.ndarray | int, kind: str) -> str:
        code = TensorProto.DataType.Value(kind.upper())
        return self._tensor(name, code, np.shape(values), packed(values, kind))

    def _tensor(self, name: str, code: int, shape: tuple, data: bytes) -> str:
        if name not in self.initializers:
            self.initializers[name] = TensorProto(
                name=name, data_type=code, dims=shape, raw_data=data
            )
        return name

    def finish(self, graph: GraphProto) -> None:
        """Puts the nodes in place of those of ``graph``, and drops what is unused."""
        del graph.node[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.initializers.values())
        del graph.value_info[:]  # types of the trace; whoever reads it infers them
        _drop_unused(graph)


class LayerWriter(Builder):
    """Writes what stands for the tensors that :func:`.trace.trace` has marked.

    Args:
        layers: By name.

    Attributes:
        report: What was written, by layer.
    """

    def __init__(self, layers: Mapping[str, QuantLayer]) -> None:
        super().__init__()
        self.layers = layers
        self.report: dict[str, dict] = {}
        self.weights: dict[str, str] = {}

    def weight(self, name: str, latent: str) -> str:
        """Writes a layer's weight, once; ``latent`` is that of training."""
        raise NotImplementedError

    def input(self, name: str, x: str) -> str:
        """Writes the quantizer of a layer's input."""
        raise NotImplementedError

    def convert(self, model: ModelProto) -> None:
        """Replaces the markers of a graph, in place.

        Raises:
            ValueError: Layers that are not calibrated, or one whose quantizer cannot
                be written; they are named.
        """
        marked = (_marked(node)['layer'] for node in model.graph.node if _marks(node))
        check_calibrated({name: self.layers[name] for name in marked})
        for node in model.graph.node:
            if _marks(node):
                self._replace(node)
            else:
                self.keep(node)
        self.finish(model.graph)
        for opset in [o for o in model.opset_import if o.domain == MARKER[0]]:
            model.opset_import.remove(opset)

    def _replace(self, marker: NodeProto) -> None:
        marked = _marked(marker)
        name = marked['layer']
        tensor = self.renamed.get(marker.input[0], marker.input[0])
        try:
            if marked['target'] == 'activation':
                new = self.input(name, tensor)
            else:
                new = self.weights.get(name) or self.weight(name, tensor)
                self.weights[name] = new
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        self.renamed[marker.output[0]] = new


def _marks(node: NodeProto) -> bool:
    return (node.domain, node.op_type) == MARKER


def _marked(marker: NodeProto) -> dict[str, str]:
    """The layer and the target of a marker."""
    return {a.name: a.s.decode() for a in marker.attribute}


def _drop_unused(graph: GraphProto) -> None:
    """Removes nodes and initializers that no output depends on: the float weights."""
    used = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(_inputs(node))
            nodes.append(node)
    initializers = [t for t in graph.initializer if t.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(initializers)


def _inputs(node: NodeProto) -> Iterator[str]:
    """Of a node and of the branches or the body that it holds."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)
