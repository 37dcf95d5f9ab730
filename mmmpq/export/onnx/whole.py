"""A detector in one file: from an image to boxes, around the network of a graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from onnx import ModelProto, compose, load_from_string, version_converter
from torch import Tensor, nn
from torch.nn import functional as F

from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.about import preprocessing
from mmmpq.export.onnx.decode import OUTPUTS, Decoding
from mmmpq.export.onnx.trace import TRACED_OPSET, exported


class Preprocessing(nn.Module):
    """What the preprocessor of ``model`` does to one image (1, C, H, W) of 0 to 255."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.about = preprocessing(model)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        if self.about['swap_channels']:
            x = x[:, [2, 1, 0]]
        if self.about['mean'] is not None:
            mean, std = (x.new_tensor(self.about[k]) for k in ('mean', 'std'))
            x = (x - mean[:, None, None]) / std[:, None, None]
        height, width = padded(image.shape[2:], self.about['pad_size_divisor'])
        margins = (0, width - image.shape[3], 0, height - image.shape[2])
        return F.pad(x, margins, value=float(self.about['pad_value']))


def padded(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """(H, W) of maps that an image of (H, W) is padded to."""
    height, width = (-(-int(side) // divisor) * divisor for side in size)
    return height, width


@torch.no_grad()
def make_whole(
    graph: ModelProto,
    model: nn.Module,
    names: Mapping[str, Any],
    shape: Sequence[int],
    opset: int,
    normalize: bool,
) -> ModelProto:
    """The network of a detector with what comes before and behind it.

    Args:
        graph: Of the network.
        model: It, in evaluation.
        names: Of the graph's outputs, as :func:`.cut.names` nests them.
        shape: (C, H, W) of an image of the test pipeline.
        opset: Of the graph.
        normalize: Whether an image comes as the test pipeline gives it; else as the
            preprocessor does.

    Raises:
        ValueError: As of :func:`.decode.check_decodable`.
    """
    channels, *size = shape
    before = Preprocessing(model)
    image = torch.zeros(1, channels, *size)
    device = next(model.parameters()).device
    inputs = before(image)
    outputs = onnx_cut.leaves(onnx_cut.network(model, inputs.to(device)))
    maps = [tensor.cpu() for tensor in outputs]
    levels = len(onnx_cut.head_of(model).prior_generator.strides)
    sizes = [tuple(m.shape[2:]) for m in maps[:levels]]
    behind = Decoding(model, sizes, tuple(size))
    leaves = onnx_cut.leaves(names)
    whole = _joined(graph, _part(behind, maps, leaves, OUTPUTS, opset, 'decoding/'))
    if normalize:
        first = _part(
            before, [image], ['images'], ['preprocessed'], opset, 'preprocessing/'
        )
        return _joined(first, whole)
    for axis, side in zip(
        whole.graph.input[0].type.tensor_type.shape.dim, inputs.shape, strict=True
    ):
        axis.dim_value = side
    return whole


def _part(
    module: nn.Module,
    inputs: Sequence[Tensor],
    reads: Sequence[str],
    gives: Sequence[str],
    opset: int,
    prefix: str,
) -> ModelProto:
    """A traced module whose inner names begin with ``prefix``."""
    traced = min(opset, TRACED_OPSET)
    part = load_from_string(exported(module.eval(), inputs, reads, gives, traced))
    if opset > traced:
        part = version_converter.convert_version(part, opset)
    options = dict(rename_inputs=False, rename_outputs=False)
    return compose.add_prefix(part, prefix, **options)


def _joined(first: ModelProto, second: ModelProto) -> ModelProto:
    """``second`` reads the outputs of ``first``, in their order."""
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    ends = zip(first.graph.output, second.graph.input, strict=True)
    return compose.merge_models(
        first, second, io_map=[(a.name, b.name) for a, b in ends]
    )
