"""Clips around a quantizer become one, or none."""

from onnx import GraphProto, NodeProto

from mmmpq.export.onnx.builder import Builder
from mmmpq.export.onnx.levels import limits
from mmmpq.export.onnx.wires import Wires

CLIPS = 'Relu', 'Clip'


def fold_clips(graph: GraphProto, to: str = 'integer') -> int:
    """Takes Relu and Clip out from before QuantizeLinears of 8 bits, in place; exact.

    QuantizeLinear rises, so that Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)) for every x,
    to the last bit. Where the type saturates at these bounds nothing remains; else one
    Clip has them and those of an integer Clip that alone reads the integers. ONNX
    Runtime fuses a convolution with the QuantizeLinear that reads its output and
    nothing in between; OpenVINO computes a Clip of floats in the convolution, and
    one of integers besides a rounding of its own.

    Folded is a Clip with constant bounds that QuantizeLinears alone read.

    Args:
        to: 'integer': that one stands behind QuantizeLinear; 'float': before it.

    Returns:
        The number of nodes that were taken out.
    """
    wires = Wires(graph)
    clips: dict[int, NodeProto] = {}
    for node in reversed(graph.node):
        if node.op_type not in CLIPS or bounds(wires, node) is None:
            continue
        readers = wires.readers[node.output[0]]
        if node.output[0] not in wires.outputs and all(
            id(reader) in clips
            or (reader.op_type == 'QuantizeLinear' and wires.grid(reader))
            for reader in readers
        ):
            clips[id(node)] = node
    builder = Builder()
    done: set[int] = set()
    for node in graph.node:
        if id(node) in clips:
            builder.renamed[node.output[0]] = builder.renamed.get(
                node.input[0], node.input[0]
            )
        elif node.op_type == 'QuantizeLinear' and wires.grid(node):
            _bounded(builder, wires, node, clips, done, to)
        elif id(node) not in done:
            builder.keep(node)
    builder.finish(graph)
    return len(clips)


def bounds(wires: Wires, node: NodeProto) -> tuple[float, float] | None:
    """(a, b) of a Relu or Clip; None where they are not constant."""
    if node.op_type == 'Relu':
        return 0.0, float('inf')
    ends = [-float('inf'), float('inf')]
    for i, name in enumerate(node.input[1:]):
        if name:  # an end may be left out
            value = wires.constant(name)
            if value is None:
                return None
            ends[i] = float(value)
    return ends[0], ends[1]


def _bounded(
    builder: Builder,
    wires: Wires,
    node: NodeProto,
    clips: dict[int, NodeProto],
    done: set[int],
    to: str,
) -> None:
    """Keeps a QuantizeLinear, bounded as the Clips around it are."""
    grid, out = wires.grid(node), node.output[0]
    low, high = limits(grid.type)
    clip, behind = wires.maker.get(node.input[0]), wires.only_reader(out)
    while id(clip) in clips:
        a, b = bounds(wires, clip)
        # What is clipped later counts: clip(clip(q, a, b), low, high).
        low, high = (
            min(max(int(q), low), high) for q in (grid.integer(a), grid.integer(b))
        )
        clip = wires.maker.get(clip.input[0])
    last = behind is not None and behind.op_type == 'Clip' and bounds(wires, behind)
    if last:
        low, high = (int(min(max(q, last[0]), last[1])) for q in (low, high))
        done.add(id(behind))
    ends = (('min', low), ('max', high)) if (low, high) != limits(grid.type) else ()
    if ends and to == 'float':
        ends = [builder.floats(f'{out}_{end}', grid.value(q)) for end, q in ends]
        x = builder.renamed.get(node.input[0], node.input[0])
        node.input[0] = builder.node('Clip', [x, *ends], out)
    builder.keep(node)
    clipped = out
    if ends and to == 'integer':
        ends = [builder.integers(f'{out}_{end}', q, grid.type) for end, q in ends]
        clipped = builder.node('Clip', [out, *ends], out)
    builder.renamed[behind.output[0] if last else out] = clipped
