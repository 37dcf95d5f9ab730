"""New nodes and initializers of a graph, and what of the old ones goes."""

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from mmmpq.export.onnx.levels import packed


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
        made = helper.make_node(kind, inputs, [output or name], name, **attributes)
        self.nodes.append(made)
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


def _drop_unused(graph: GraphProto) -> None:
    """Removes nodes and initializers that no output depends on: the float weights."""
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(_inputs(node))
            kept.append(node)
    initializers = [t for t in graph.initializer if t.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def _inputs(node: NodeProto) -> Iterator[str]:
    """Of a node and of the branches or the body that it holds."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)
