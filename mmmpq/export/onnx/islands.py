"""Integers that go on from layer to layer, through sums and pooling, in an ONNX graph.

A quantizer stands at every tensor that integers make, and all who read it read that
one. So whatever stands between layers is computed in integers as well, where the
target can.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto
from torch import Tensor

from mmmpq.export.onnx.clips import CLIPS, bounds
from mmmpq.export.onnx.levels import limits
from mmmpq.export.onnx.ranges import observe
from mmmpq.export.onnx.rewire import ASKING, Input, Island, rewire
from mmmpq.export.onnx.shared import Reader, shared_grid
from mmmpq.export.onnx.target import Target
from mmmpq.export.onnx.wires import Grid, Wires
from mmmpq.policy import some_of


def add_islands(
    model: ModelProto,
    target: Target,
    images: Sequence[np.ndarray],
    trained: Mapping[str, tuple[str, Grid]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Gives every tensor between the operators of ``target`` a quantizer, in place.

    Layers keep the quantizers of their inputs, as :func:`.shared.shared_grid` says:
    those of 8 bits may read the tensor's, clipped to the range of their own; those of
    fewer bits quantize what the tensor's leaves. Outputs of sums, of pooling and of the
    graph, and the inputs of sums, are rounded to 8 bits, which the net that was trained
    does not do. Their ranges have the least squared error over ``images``; those of
    the graph's outputs, of which the largest values count, are what is seen.

    Args:
        model: As :func:`.qdq.to_qdq` leaves it.
        target: Of what it computes in integers.
        images: Batches (N, C, H, W), float32, as the graph takes them; none are needed
            where all grids are trained.
        trained: By tensor, the island that a net was trained with (:mod:`.trained`),
            and its grid, which is taken as it is.

    Returns:
        'tensors': how many are quantized that were not; 'trained': how many islands
        have a trained grid; 'shared': layers that read the grid of another, or of
        nobody's, in place of their own; 'requantized': those that quantize once more;
        'open': nodes that read integers in float, as 'type name'; 'deviation': by
        output, the root mean square of what all this changes on ``images``, relative to
        that of the output.

    Raises:
        ValueError: There are no images, or they do not fit the graph.
    """
    wires = Wires(model.graph)
    islands, open_ends = find(model, wires, target)
    count = _take_trained(islands, wires, target, trained)
    untrained = [island for island in islands if island.grid is None]
    measured = [island.name for island in untrained if island.measured]
    asked = not trained or measured or len(images)
    outputs = [output.name for output in model.graph.output] if asked else []
    seen = observe(model, [*dict.fromkeys([*measured, *outputs])], images)
    for island in untrained:
        values, ends = None, None
        kind = target.type_of(reader.grid.type for reader in island.readers)
        if island.measured:
            values = seen[island.name]
            ends = values.ends if island.is_output else values.fit(kind)
        island.grid = shared_grid(island.readers, values, ends, kind)
    report = rewire(model, wires, islands, target)
    after = observe(model, outputs, images)
    report.update(open=open_ends, trained=count)
    report['deviation'] = {
        name: _relative(seen[name].sample, after[name].sample) for name in outputs
    }
    return report


def _relative(before: Tensor, after: Tensor) -> float:
    """‖after - before‖ / ‖before‖."""
    return float((after - before).norm() / before.norm().clamp_min(1e-12))


def _take_trained(
    islands: Sequence[Island],
    wires: Wires,
    target: Target,
    trained: Mapping[str, tuple[str, Grid]],
) -> int:
    """Gives islands the grids that they were trained with, and counts them.

    Raises:
        ValueError: One is none of the graph.
    """
    taken: set[str] = set()
    for island in islands:
        found = {trained.get(name) for name in holding(island, wires, target)}
        if len(found) == 1 and None not in found:
            ((name, island.grid),) = found
            island.trained = True
            taken.add(name)
    if lost := {name for name, _ in trained.values()} - taken:
        raise ValueError(
            'model: the graph does not quantize what was trained with quant.target at '
            f'{some_of(sorted(lost))}; accepted is the net with its BatchNorms folded '
            '(--fold, fold_batchnorm) and otherwise as it was trained'
        )
    return len(taken)


def holding(island: Island, wires: Wires, target: Target) -> list[str]:
    """The tensors from which the others of an island only take values over."""
    names = island.tensors
    return [n for n in names if wires.maker[n].op_type not in target.through]


def find(
    model: ModelProto, wires: Wires, target: Target
) -> tuple[list[Island], list[str]]:
    """Tensors that integers make, joined where they are to have one grid; and, as
    'type name', the nodes that read integers in float."""
    joined: dict[str, str] = {}  # a tensor -> one that stands for its island
    inside: set[int] = set()  # nodes that compute in integers
    between: set[str] = set()  # what a clip alone reads: it is no tensor of its own

    def of(name: str) -> str:
        while joined[name] != name:
            name = joined[name]
        return name

    for node in model.graph.node:
        kind, data = node.op_type, _data(node)
        of_islands = all(name in joined for name in data)
        if kind in target.layers and _is_quantized(wires, node):
            inside.add(id(node))
            if kind not in target.free:
                joined[node.output[0]] = node.output[0]
        elif not of_islands or not data:
            continue
        elif kind in CLIPS and wires.only_reader(data[0]) and bounds(wires, node):
            between.add(data[0])
            joined[node.output[0]] = node.output[0]
            inside.add(id(node))
        elif kind in target.operators:
            joined[node.output[0]] = node.output[0]
            inside.add(id(node))
        elif kind in target.through and _keeps_values(node):
            inside.add(id(node))
            for name in node.output:
                joined[name] = of(data[0])
            for name in data:
                joined[of(name)] = of(node.output[0])
    members: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.output:
            if name in joined and name not in between:
                members[of(name)].append(name)
    islands, open_ends = [], []
    for tensors in members.values():
        island = Island({name: _inputs_behind(wires, name, target) for name in tensors})
        for name, inputs in island.tensors.items():
            island.is_output |= name in wires.outputs
            own = {id(each.nodes[0]) for each in inputs}
            for node in wires.readers[name]:
                if id(node) in own or node.op_type in ASKING:
                    continue
                if id(node) not in inside:
                    open_ends.append(f'{node.op_type} {node.name}')
                if id(node) not in inside or node.op_type not in target.through:
                    island.measured = True
        island.measured |= island.is_output
        if island.measured or island.readers:
            islands.append(island)
    return islands, open_ends


def _data(node: NodeProto) -> list[str]:
    """The tensors that a node computes with; the rest are shapes and settings."""
    every = node.op_type in ('Add', 'Mul', 'Concat')
    return list(node.input) if every else list(node.input[:1])


def _keeps_values(node: NodeProto) -> bool:
    """Whether what comes out has been in what goes in."""
    if node.op_type != 'Resize':
        return True
    modes = [a.s for a in node.attribute if a.name == 'mode']
    return not modes or modes == [b'nearest']


def _is_quantized(wires: Wires, node: NodeProto) -> bool:
    makers = [wires.maker.get(name) for name in node.input[:2]]
    return all(maker and maker.op_type == 'DequantizeLinear' for maker in makers)


def _inputs_behind(wires: Wires, name: str, target: Target) -> list[Input]:
    """The quantizers of layers that read a tensor."""
    inputs = []
    for first in wires.readers[name]:
        node, nodes, ends = first, [first], None
        if first.op_type == 'Clip' and target.clip == 'float':
            node, ends = wires.only_reader(first.output[0]), bounds(wires, first)
            nodes.append(node)
        if node is None or node.op_type != 'QuantizeLinear':
            continue
        grid = wires.grid(node)
        if grid is None or grid.type not in target.types:
            continue
        low, high = map(int, map(grid.integer, ends)) if ends else limits(grid.type)
        behind = wires.only_reader(node.output[0])
        if behind is not None and behind.op_type == 'Clip':
            low, high = map(int, bounds(wires, behind))
            nodes.append(behind)
            behind = wires.only_reader(behind.output[0])
        if behind is not None and behind.op_type == 'DequantizeLinear':
            layer = node.input[1].removesuffix('.input_scale')
            inputs.append(Input(Reader(layer, grid, low, high), [*nodes, behind]))
    return inputs
