"""Which layers of a whole net ONNX Runtime computes in integers, which in float."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency.bench import Session
from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.layers import calibrating


def float_layers(model: nn.Module, input_shape: Sequence[int]) -> set[str]:
    """Layers that are quantized in an exported file, and yet computed in float.

    ONNX Runtime fuses a layer with what quantizes its input, its weight and its output.
    Where an output goes on unquantized, into an addition or out of the net, it computes
    in float between QuantizeLinear and DequantizeLinear.

    Args:
        model: Quantized to 8 bits, in any state: it is calibrated on noise, and its
            BatchNorm is folded.
        input_shape: (C, H, W).

    Raises:
        ValueError: It cannot be exported.
    """
    model.eval()
    images = torch.randn(1, *input_shape)
    with torch.no_grad(), calibrating(model):
        onnx_cut.network(model, images)
    fold_batchnorm(model, input_shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        layers = export_onnx(model, path, input_shape)['layers']
        return layers.keys() - integer_layers(path).keys()


def integer_layers(path: str | Path) -> dict[str, str]:
    """Layers of an exported file that ONNX Runtime computes in integers.

    Returns:
        By name, the type of the weight that the file has: 'int8' or 'uint8'.
    """
    inputs = Session(path, threads=1).integer_inputs
    weights = (i.rpartition('.weight_') for i in inputs)
    return {name: kind for name, _, kind in weights if kind in ('int8', 'uint8')}
