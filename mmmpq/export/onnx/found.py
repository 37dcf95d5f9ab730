"""Where the forward of a net makes the tensors that a file quantizes between layers."""

from collections import Counter

import torch
from torch import nn

from mmmpq.costs.profile import reference_input_shape
from mmmpq.export.extras import deploy_extra
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.onnx import cut
from mmmpq.export.onnx import trace as onnx_trace
from mmmpq.export.onnx.graph import traced
from mmmpq.export.onnx.qdq import to_qdq
from mmmpq.export.onnx.target import Target
from mmmpq.layers import QuantLayer, quantized_layers
from mmmpq.layers.watch import Watch, parts_of
from mmmpq.models.copying import copy_of
from mmmpq.models.islands import Found
from mmmpq.models.loading import Folded
from mmmpq.randomness import isolated_randomness
from mmmpq.registry import FINDERS

SIDE = 256  # of images where any size is taken: the graph is the same, and small maps


@FINDERS.register_module('islands')
def find_islands(model: nn.Module, name: str) -> list[Found] | None:
    """The islands of ``model`` for a target, from a dry export of a copy of it.

    What is marked in the graph is what a forward would hand to
    :class:`mmmpq.layers.watch.Watch`, so that nothing hangs on names of an exporter.

    Args:
        model: Calibrated or not; it stays as it is.
        name: Of the target.

    Returns:
        None of a search: its layers have no precision yet.

    Raises:
        ValueError: As of :func:`mmmpq.models.islands.add_islands`.
    """
    target = Target.load(name, 'quant.target')
    layers = quantized_layers(model).values()
    if not all(isinstance(layer, QuantLayer) for layer in layers):
        return None
    try:
        for package in ('onnx', 'onnxruntime'):
            deploy_extra(package)
        return _find(copy_of(model).eval(), target)
    except ValueError as error:
        raise ValueError(f'quant.target: {error}') from error


@isolated_randomness()
def _find(net: nn.Module, target: Target) -> list[Found]:
    from mmmpq.export.onnx import islands
    from mmmpq.export.onnx.wires import Wires

    channels, *sides = reference_input_shape(net)
    most = SIDE if cut.takes_any_size(net) else max(sides)
    shape = channels, *(min(side, most) for side in sides)
    layers = quantized_layers(net)
    _any_ranges(layers.values())
    fold_batchnorm(net, shape)
    watch = Watch(onnx_trace.mark_between)
    for path, module, composed in parts_of(net):
        watch.add(path, module, composed, composed and path != '')
    graph, _, marks = traced(net, shape, onnx_trace.TRACED_OPSET, '8bit')
    to_qdq(graph, layers, target=target)
    wires, found = Wires(graph.graph), []
    times = Counter(place for each in marks.values() for place in each)
    marks = {n: [p for p in each if times[p] == 1] for n, each in marks.items()}
    folded = {n for n, m in net.named_modules() if isinstance(m, Folded)}
    for island in islands.find(graph, wires, target)[0]:
        makers = [marks.get(n, []) for n in islands.holding(island, wires, target)]
        places = tuple(_place(each, folded) for each in makers if each)
        found.append(
            Found(
                island.name,
                places if all(makers) else (),
                tuple(dict.fromkeys(reader.layer for reader in island.readers)),
                island.measured,
                target.type,
            )
        )
    return found


def _place(places: list[str], folded: set[str]) -> str:
    """Of those of one tensor: behind a BatchNorm that is folded, else the first."""
    return next((p for p in places if p.partition('[')[0] in folded), places[0])


@torch.no_grad()
def _any_ranges(layers) -> None:
    """Calibrates quantizers that are not: the graph is the same whatever they hold."""
    for layer in layers:
        layer.calibrate([torch.ones(1, device=layer.weight.device)])
        if layer.a_quantizer.per_subnet:
            layer.a_quantizer.set_statistics(
                torch.ones_like(layer.a_quantizer.statistics)
            )
