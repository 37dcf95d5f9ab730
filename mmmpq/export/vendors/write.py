"""Which vendor takes which file, and its writing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from mmmpq.costs.profile import counted_layers
from mmmpq.export.extras import deploy_extra
from mmmpq.export.vendors import coreml, mct
from mmmpq.export.vendors.widths import fitted, rounded
from mmmpq.fileio import atomic_write
from mmmpq.layers import quantized_layers
from mmmpq.policy import some_of

GRAPH = 'float'  # the format of the net whose tensors other files name

UNSAID = 'left float by the net, and not in the file: the tool quantizes as by default'


class Format(NamedTuple):
    """A vendor's.

    Attributes:
        profile: Of :data:`mmmpq.costs.hardware.PROFILES`, whose precisions it takes.
        text: What the file says, and notes; of a graph, where it names tensors, and of
            the precisions.
        names_tensors: Whether it does.
        others_float: Whether layers that it does not name stay float.
    """

    profile: str
    text: Callable
    names_tensors: bool = True
    others_float: bool = False


def formats() -> dict[str, Format]:
    """By name; the extra `deploy` is needed."""
    from mmmpq.export.vendors import aimet, hailo, rknn

    return {
        'aimet': Format('htp', aimet.encodings),
        'hailo': Format('hailo', hailo.script),
        'rknn': Format('rk3588', rknn.config),
        'mct': Format('imx500', mct.module, names_tensors=False),
        'coreml': Format(
            'coreml', coreml.recipe, names_tensors=False, others_float=True
        ),
    }


def export_vendors(
    model: nn.Module,
    paths: Mapping[str, Path],
    input_shape: Sequence[int],
    classes: Sequence[str] = (),
    round_up: bool = False,
) -> list[str]:
    """Writes files of vendors, and the float ONNX file whose tensors they name.

    Args:
        model: A toolbox model of fixed precision with calibrated quantizers, whose
            BatchNorms are folded: tools fold them, and weights would leave their
            levels.
        paths: By format: :data:`GRAPH`, or one of :func:`formats`.
        input_shape: (C, H, W) of an image, in pixels.
        classes: Their names, for the metadata.
        round_up: As of :func:`.widths.fitted`.

    Returns:
        What is to be known of the files, each with its format in front.

    Raises:
        ValueError: As of :func:`mmmpq.export.onnx.graph.export_onnx` and
            :func:`.widths.fitted`; nothing is written then.
    """
    deploy_extra('onnx')
    from mmmpq.export.vendors.graph import FloatGraph

    vendors = formats()
    kinds = {kind: vendors[kind] for kind in paths if kind != GRAPH}
    layers = quantized_layers(model)
    fits = {k: fitted(layers, f.profile, k, round_up) for k, f in kinds.items()}
    graph = None
    if GRAPH in paths or any(f.names_tensors for f in kinds.values()):
        graph = FloatGraph(model, input_shape, classes)
    floats = [n for n in counted_layers(model).values() if n not in layers]
    notes, texts = [], {}
    for kind, vendor in kinds.items():
        args = (graph, fits[kind]) if vendor.names_tensors else (fits[kind],)
        texts[kind], lines = vendor.text(*args)
        if changed := rounded(layers, fits[kind]):
            lines = [
                f'{len(changed)} layers are rounded up: {some_of(changed)}',
                *lines,
            ]
        if floats and not vendor.others_float:
            lines = [*lines, f'{some_of(floats)}: {UNSAID}']
        notes += [f'{kind}: {line}' for line in lines]
    for kind, text in texts.items():
        atomic_write(paths[kind], text)
    if GRAPH in paths:
        graph.write(paths[GRAPH])
    return notes
