"""Ranges of tensors of an ONNX graph, from what images make of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch

from mmmpq.quantizers.ranges import (
    least_squares_range,
    least_squares_span,
    subsample,
)

SAMPLE = 2**14  # values that are kept of a tensor, of all images together


@dataclass(frozen=True)
class Seen:
    """Values of a tensor: the ends of all, and a sample (1, values)."""

    low: float
    high: float
    sample: torch.Tensor

    @property
    def ends(self) -> tuple[float, float]:
        """The range of all values, 0 in it."""
        return min(self.low, 0.0), max(self.high, 0.0)

    def fit(self, kind: str) -> tuple[float, float]:
        """The range (low, high), 0 in it, whose 8 bits have the least squared error.

        Args:
            kind: 'uint8', or 'int8' for a range that is symmetric about 0.
        """
        if kind == 'int8':
            high = float(least_squares_range(self.sample, (-127, 127)))
            return -high, high
        if self.low >= 0:
            return 0.0, float(least_squares_range(self.sample, (0, 255)))
        low, high = least_squares_span(self.sample, (0, 255))
        return float(low), float(high)


def watching(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` that gives float tensors of these names, too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {output.name for output in model.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in outputs
    )
    return copy


def observe(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[np.ndarray]
) -> dict[str, Seen]:
    """What tensors hold while ONNX Runtime computes ``model`` as it is written, in
    float between the nodes that quantize.

    Args:
        model: A graph.
        names: Of float tensors in it.
        images: Batches (N, C, H, W), float32; they go through one by one.

    Raises:
        ValueError: There are no images, or they do not fit the graph.
    """
    if not names:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # fuses no layer
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        watching(model, names).SerializeToString(),
        options,
        providers=['CPUExecutionProvider'],
    )
    records: dict[str, list[tuple[torch.Tensor, ...]]] = {n: [] for n in names}
    for image in _one_by_one(images, session.get_inputs()[0].shape):
        for name, values in zip(
            names, session.run(list(names), {'images': image}), strict=True
        ):
            flat = torch.from_numpy(values).reshape(1, -1)
            records[name].append((flat.min(), flat.max(), subsample(flat, SAMPLE)))
    if not any(records.values()):
        raise ValueError('images: found none; --target takes ranges from some')
    seen = {}
    for name, parts in records.items():
        lows, highs, samples = zip(*parts, strict=True)
        sample = subsample(torch.cat(samples, 1), SAMPLE)
        seen[name] = Seen(float(min(lows)), float(max(highs)), sample)
    return seen


def _one_by_one(
    images: Sequence[np.ndarray], axes: Sequence[int | str]
) -> Iterator[np.ndarray]:
    for batch in images:
        for side, axis in zip(batch.shape[1:], axes[1:], strict=True):
            if isinstance(axis, int) and axis != side:
                raise ValueError(
                    f'images: found {batch.shape[1:]} in the train_dataloader; the '
                    f'net is exported for {tuple(axes[1:])}, which --input-shape sets'
                )
        for image in np.ascontiguousarray(batch, np.float32):
            yield image[None]
