"""Which layers of a whole net a runtime computes in integers, which in float."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency.runtimes import session_of
from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.layers import calibrating


def float_layers(
    model: nn.Module, input_shape: Sequence[int], runtime: str = 'onnxruntime'
) -> set[str]:
    """Layers that are quantized in an exported file, and yet computed in float.

    ONNX Runtime fuses a layer with what quantizes its input, its weight and its output.
    Where an output goes on unquantized, into an addition or out of the net, it computes
    in float between QuantizeLinear and DequantizeLinear.

    Args:
        model: Quantized to 8 bits, in any state: it is calibrated on noise, and its
            BatchNorm is folded.
        input_shape: (C, H, W).
        runtime: As of :func:`.runtimes.session_of`.

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
        vnni = bool(session_of(runtime).signed)
        layers = export_onnx(model, path, input_shape, vnni=vnni)['layers']
        return layers.keys() - integer_layers(path, runtime).keys()


def integer_layers(path: str | Path, runtime: str = 'onnxruntime') -> dict[str, str]:
    """Layers of an exported file that a runtime computes in integers.

    Returns:
        By name, the type of the weight that the file has: 'int8' or 'uint8'.
    """
    inputs = session_of(runtime)(path, threads=1).integer_inputs
    weights = (i.rpartition('.weight_') for i in inputs)
    return {name: kind for name, _, kind in weights if kind in ('int8', 'uint8')}
