"""Which layers of a whole net ONNX Runtime leaves in float."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mmmpq.export import onnx_cut
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency_bench import Session
from mmmpq.export.onnx_graph import export_onnx
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
        fused = Session(path, threads=1).integer_inputs
    return {n for n in layers if not any(i.startswith(f'{n}.weight_') for i in fused)}
