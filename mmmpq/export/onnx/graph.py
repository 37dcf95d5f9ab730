"""A net of fixed precision as an ONNX file of integers that ONNX Runtime executes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmmpq.export.extras import deploy_extra
from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx import trace as onnx_trace
from mmmpq.export.onnx.about import FORMAT, about_model
from mmmpq.export.onnx.levels import CONTAINERS, containers_of
from mmmpq.fileio import atomic_write
from mmmpq.layers import QuantizedLayer, QuantLayer, quantized_layers
from mmmpq.policy import SKIP, some_of
from mmmpq.version import __version__

OPSETS = range(13, 26)
INT4_OPSET = 21  # the first with types of 4 bits, and of 16
TRACED_SIZE = 320  # pixels of an image that suffice where any size may come later


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_shape: Sequence[int],
    opset: int = INT4_OPSET,
    containers: str = '8bit',
    vnni: bool = False,
    target: str | None = None,
    images: Sequence[np.ndarray] = (),
    classes: Sequence[str] = (),
    end_to_end: bool = False,
    normalize: bool = True,
) -> dict[str, Any]:
    """Writes the network of ``model`` as ONNX with quantized weights and activations.

    A classifier goes in whole, to its class scores before the softmax; a segmentor, up
    to the scores of its decode head's map; a detector, up to the outputs of its dense
    head (of a two-stage one: features and outputs of the RPN). Behind these
    :mod:`.onnx_model` lets the toolbox decode. Images come in preprocessed, in any
    number, and for most detectors and segmentors of any size. Weights are int8 or
    uint8, dequantized in the graph; a shared head has one copy. Activations are
    quantized to uint8 and clipped to the levels of their true width, which takes the
    Clips of ReLU6 and the like in (:mod:`.clips`). Layers at 32 bits stay float.

    With ``containers`` 'auto' weights of up to four bits are int4 or uint4, and inputs
    beside them if that suffices. The file is smaller, and no runtime computes such
    layers in integers.

    With ``end_to_end`` a detector goes in whole, behind what its preprocessor does and
    with decoding and NMS (:mod:`.whole`): one image of ``input_shape`` comes in, boxes
    in its pixels go out. These parts are computed in float.

    With ``target`` all that is between layers is quantized to 8 bits as well, where
    that runtime computes it in integers (:mod:`.islands`).

    A file and the model disagree by rounding alone. Weights are equal bit for bit, but
    for one rounding where a zero point is no integer, and both round halves to even.
    But QuantizeLinear divides by s where the model multiplies by 1 / s, and a runtime
    adds up its convolutions in another order. Where the last bits differ, a value in
    the very middle between two levels takes the other one: one to five activations in
    ten million on the bundled shapes, nearly all by the order of the sums. One step at
    one place may then move the outputs of that image; a net of few bits moves as far
    when PyTorch itself adds in another order.

    And ONNX Runtime rounds the bias of a convolution that it computes in integers to a
    multiple of the two scales' product. With '8bit' it is inside: speed for exactness.
    Some activations in ten thousand take another level after one such layer, which a
    detector of 2 to 4 bits makes another net of the same mAP, with equal detections in
    no image. With 'auto' the bias is added behind, where it is exact and keeps the
    convolution in float, but at W8A8. Biases of linear layers are always exact.

    Args:
        model: A toolbox model of fixed precision with calibrated quantizers. It is left
            as it was.
        path: Where the file goes.
        input_shape: (C, H, W) of an image, in pixels; where any size is taken, the one
            to trace with, cut to 320 pixels.
        opset: Of ONNX: 13 to 25; 21 or later for weights of up to 4 bits in 'auto'.
        containers: '8bit', types that run fast; or 'auto', the smallest.
        vnni: Whether the file is for processors with VNNI, or no x86, alone. Others
            would cut the integer sums of layers at W8A8, by which outputs may be off by
            several percent. If False the weights of these layers are stored unsigned,
            which is exact on every processor, but makes no use of VNNI.
        target: One of :data:`.target.TARGETS`; default: the one that the net was
            trained for (``quant.target``), if it was.
        images: With ``target``, batches (N, C, H, W), preprocessed, for its ranges.
        classes: Their names, for the metadata (:mod:`.about`).
        end_to_end: Whether boxes of one image are wanted.
        normalize: With ``end_to_end``, whether the image comes as the test pipeline
            gives it; else as the preprocessor does.

    Returns:
        'path', 'opset', 'bytes' of the file, 'nodes' by type, 'layers': by name of
        each that is in the file, types and bytes of :func:`.onnx_qdq.to_qdq`; and
        'islands', of :func:`.islands.add_islands`, or None.

    Raises:
        ValueError: The extra `deploy` is missing; an opset, shape or containers that
            are not accepted; layers without a fixed precision, without calibration, or
            of a width that the opset lacks; a module that the exporter cannot
            translate; a target that is unknown or lacks a type; with ``end_to_end`` a
            model whose boxes a graph cannot decode. Layers and modules are named.
    """
    deploy_extra('onnx')
    from mmmpq.export.onnx.clips import fold_clips
    from mmmpq.export.onnx.qdq import to_qdq
    from mmmpq.export.onnx.trained import target_of, trained_grids

    layers = _fixed_layers(model)
    shape = _checked_shape(input_shape)
    if containers not in CONTAINERS:
        raise ValueError(
            f'containers: found {containers!r}; accepted are {", ".join(CONTAINERS)}'
        )
    _check_opset(layers, opset, containers)
    runtime = target_of(model, target)
    if runtime is not None:
        deploy_extra('onnxruntime')
        from mmmpq.export.onnx.islands import add_islands

        runtime.check(layers, containers)
    if end_to_end:
        from mmmpq.export.onnx.decode import OUTPUTS, check_decodable
        from mmmpq.export.onnx.whole import make_whole

        check_decodable(model)
    graph, outputs, marks = traced(model, shape, opset, containers)
    report = to_qdq(graph, layers, containers, vnni, runtime)
    graph.ir_version = max(graph.ir_version, 10 if opset >= INT4_OPSET else 8)
    islands = None
    if runtime:
        trained = trained_grids(model, marks, runtime)
        islands = add_islands(graph, runtime, images, trained)
    folded = runtime.folded_clip if runtime else 'integer'
    if folded:
        fold_clips(graph.graph, folded)
    about = about_model(model, shape, outputs, layers, classes)
    if end_to_end:
        graph = make_whole(graph, model, outputs, shape, opset, normalize)
        about['outputs'] = {name: name for name in OUTPUTS}
        about.update(end_to_end=True, normalize=normalize)
    written = write_graph(graph, path, about)
    return dict(written, opset=opset, layers=report, islands=islands)


def export_qonnx(
    model: nn.Module,
    path: str | Path,
    input_shape: Sequence[int],
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the network of ``model`` as QONNX, for flows that build their hardware.

    What is in the file is that of :func:`export_onnx`; every quantizer is one node of
    its true width (:mod:`.qonnx`).

    Returns:
        'path', 'bytes' of the file, 'nodes' by type.

    Raises:
        ValueError: As of :func:`export_onnx`.
    """
    deploy_extra('onnx')
    from mmmpq.export.onnx.qonnx import to_qonnx

    graph, about, layers = traced_layers(model, input_shape, classes)
    to_qonnx(graph, layers)
    return write_graph(graph, path, about)


def traced_layers(
    model: nn.Module,
    input_shape: Sequence[int],
    classes: Sequence[str] = (),
    containers: str = '8bit',
) -> tuple[Any, dict[str, Any], dict[str, QuantLayer]]:
    """The marked graph, its metadata, and the layers that its markers name."""
    layers, shape = _fixed_layers(model), _checked_shape(input_shape)
    graph, outputs, _ = traced(model, shape, onnx_trace.TRACED_OPSET, containers)
    return graph, about_model(model, shape, outputs, layers, classes), layers


def traced(
    model: nn.Module, shape: tuple[int, ...], opset: int, containers: str
) -> tuple[Any, dict[str, Any], dict[str, list[str]]]:
    """The marked graph, the names of its outputs, and what :func:`.places.take_out`
    takes out of it."""
    import onnx

    from mmmpq.export.onnx.places import take_out

    most = TRACED_SIZE if onnx_cut.takes_any_size(model) else max(shape)
    size = shape[0], min(shape[1], most), min(shape[2], most)
    was_training = model.training
    model.eval()
    try:
        # Two: normalizations refuse one image where their maps are single pixels.
        images = torch.zeros(2, *size, device=next(model.parameters()).device)
        traced = min(opset, onnx_trace.TRACED_OPSET)
        data, outputs = onnx_trace.trace(model, images, traced, containers)
    finally:
        model.train(was_training)
    graph = onnx.load_from_string(data)
    if opset > traced:
        graph = onnx.version_converter.convert_version(graph, opset)
    return graph, outputs, take_out(graph.graph)


def write_graph(
    graph: Any,
    path: str | Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Checks the graph and writes it, with what it is of."""
    import onnx

    graph.producer_name, graph.producer_version = 'mmmpq', __version__
    onnx.helper.set_model_props(graph, {FORMAT: json.dumps(about)})
    onnx.checker.check_model(graph, full_check=True)
    data = graph.SerializeToString()
    atomic_write(path, data)
    return {
        'path': str(path),
        'bytes': len(data),
        'nodes': dict(Counter(node.op_type for node in graph.graph.node)),
    }


def _fixed_layers(model: nn.Module) -> dict[str, QuantLayer]:
    layers = quantized_layers(model)
    if not layers:
        raise ValueError(
            'model: found no quantized layer; accepted is a model with `quant.policy`'
        )
    mixed = [n for n, m in layers.items() if not isinstance(m, QuantLayer)]
    if mixed:
        raise ValueError(
            f'model: found {len(mixed)} layers with several candidates, such as '
            f'{mixed[0]}; accepted is a model of fixed precision: give quant.policy, '
            'or apply_policy first'
        )
    return layers


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3 or any(isinstance(n, bool) or int(n) < 1 for n in shape):
        raise ValueError(
            f'input_shape: found {shape!r}; accepted is (channels, height, width), '
            'such as (3, 224, 224)'
        )
    return tuple(map(int, shape))


def _check_opset(
    layers: dict[str, QuantizedLayer], opset: int, containers: str
) -> None:
    if opset not in OPSETS:
        raise ValueError(
            f'opset: found {opset!r}; accepted are {OPSETS[0]} to {OPSETS[-1]}'
        )
    low = [
        f'{name} ({layer.precision})'
        for name, layer in layers.items()
        if layer.precision != SKIP
        and {4, 16}.intersection(containers_of(layer.precision, containers))
    ]
    if opset < INT4_OPSET and low:
        raise ValueError(
            f'opset: found {opset}, which has no types of 4 and of 16 bits; '
            f"{INT4_OPSET} or later is needed, or containers '8bit' and activations of "
            f'at most 8, for {some_of(low, 8)}'
        )
