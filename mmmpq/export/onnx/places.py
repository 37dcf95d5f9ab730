"""Tensors that a trace has marked with the places where a forward makes them."""

from collections.abc import Sequence

from onnx import GraphProto, NodeProto

from mmmpq.export.onnx.trace import ISLAND, MARKER


def take_out(graph: GraphProto) -> dict[str, list[str]]:
    """Takes the markers of tensors between layers out of ``graph``, in place.

    Returns:
        What marks each tensor, in the order of the forward.
    """
    outputs = {output.name for output in graph.output}
    source: dict[str, str] = {}
    marks: dict[str, list[str]] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        told = _told(node)
        if told.get('target') != ISLAND:
            kept.append(node)
            continue
        x, out = node.input[0], node.output[0]
        marks.setdefault(x, []).append(told['layer'])
        source[out] = x
    for out in outputs & set(source):
        _rename(kept, source[out], out)
        marks[out] = marks.pop(source[out])
    del graph.node[:]
    graph.node.extend(kept)
    return marks


def _told(node: NodeProto) -> dict[str, str]:
    if (node.domain, node.op_type) != MARKER:
        return {}
    return {a.name: a.s.decode() for a in node.attribute}


def _rename(nodes: Sequence[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
