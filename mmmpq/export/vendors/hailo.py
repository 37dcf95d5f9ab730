"""A model script (.alls) of Hailo's Dataflow Compiler.

A command a precision: ``quantization_param([conv1, conv2], precision_mode=a8_w4)``.
a8_w8 is the default. Layers have the names that the compiler's parser gives them: its
type and a number of that type, in the order of the graph. Source: the model scripts of
https://github.com/hailo-ai/hailo_model_zoo (hailo_model_zoo/cfg/alls), and
https://developer.ridgerun.com/wiki/index.php/Hailo/Hailo-8/AI_Software_and_Tools/Hailo_Model_Scripts.
"""

from collections import Counter
from collections.abc import Mapping

from onnx import NodeProto

from mmmpq.export.vendors.graph import FloatGraph
from mmmpq.policy import Precision

MODES = {(4, 8): 'a8_w4', (8, 8): 'a8_w8', (8, 16): 'a16_w16'}


def script(
    graph: FloatGraph, precisions: Mapping[str, Precision]
) -> tuple[str, list[str]]:
    """The text of the file, and what is to be known of it."""
    named = hailo_names(graph)
    lines = [f'# {ours} is {theirs}' for theirs, ours in named.items()]
    for precision, mode in MODES.items():
        names = [n for n, ours in named.items() if precisions[ours] == precision]
        if names and mode != 'a8_w8':
            listed = ', '.join(names)
            lines.append(f'quantization_param([{listed}], precision_mode={mode})')
    return '\n'.join(lines) + '\n', [
        "names are those that Hailo's parser is expected to give: compare them, which "
        'the first lines list, with those of the parsed net'
    ]


def hailo_names(graph: FloatGraph) -> dict[str, str]:
    """Hailo's name of each node of a layer, and the layer's."""
    of = {node.name: name for name, nodes in graph.nodes.items() for node in nodes}
    names, counts = {}, Counter()
    for node in graph.model.graph.node:
        kind = _kind(node, graph)
        if kind:
            counts[kind] += 1
        if node.name in of:
            names[f'{kind}{counts[kind]}'] = of[node.name]
    return names


def _kind(node: NodeProto, graph: FloatGraph) -> str:
    """What the parser calls a layer; '' for what it does not count with them."""
    if node.op_type == 'Conv':
        groups = next((a.i for a in node.attribute if a.name == 'group'), 1)
        shapes = {t.name: t.dims for t in graph.model.graph.initializer}
        depthwise = groups > 1 and shapes.get(node.input[1], [0, 0])[1] == 1
        return 'dw' if depthwise else 'conv'
    return {'ConvTranspose': 'deconv', 'Gemm': 'fc', 'MatMul': 'fc'}.get(
        node.op_type, ''
    )
