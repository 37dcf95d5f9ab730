"""Clips in front of a quantizer become bounds of its integers."""

from onnx import GraphProto, NodeProto

from mmmpq.export.onnx.builder import Builder
from mmmpq.export.onnx.levels import limits
from mmmpq.export.onnx.wires import Wires

CLIPS = 'Relu', 'Clip'


def fold_clips(graph: GraphProto) -> int:
    """Takes Relu and Clip out from before QuantizeLinears of 8 bits, in place; exact.

    QuantizeLinear rises, so that Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)) for every x,
    to the last bit. Where the type saturates at these bounds nothing remains; else an
    integer Clip behind it, or the one that is there, has them. ONNX Runtime fuses a
    convolution with the QuantizeLinear that reads its output and nothing in between.

    Folded is a Clip with constant bounds that QuantizeLinears alone read.

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
            _bounded(builder, wires, node, clips, done)
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
) -> None:
    """Keeps a QuantizeLinear, and bounds its integers as the Clips before it do."""
    grid = wires.grid(node)
    low, high = limits(grid.type)
    clip = wires.maker.get(node.input[0])
    builder.keep(node)
    if id(clip) not in clips:
        return
    while id(clip) in clips:
        a, b = bounds(wires, clip)
        # What is clipped later counts: clip(clip(q, a, b), low, high).
        low, high = (
            min(max(int(q), low), high) for q in (grid.integer(a), grid.integer(b))
        )
        clip = wires.maker.get(clip.input[0])
    out = node.output[0]
    behind = wires.only_reader(out)
    last = behind is not None and behind.op_type == 'Clip' and bounds(wires, behind)
    if last:
        low, high = (min(max(q, int(last[0])), int(last[1])) for q in (low, high))
        done.add(id(behind))
    if (low, high) != limits(grid.type):
        ends = [
            builder.integers(f'{out}_{end}', q, grid.type)
            for end, q in (('min', low), ('max', high))
        ]
        clipped = builder.node('Clip', [out, *ends], out)
        builder.renamed[behind.output[0] if last else out] = clipped
    elif last:
        builder.renamed[behind.output[0]] = out
