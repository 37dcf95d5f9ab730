"""Nets in OpenVINO."""

from typing import Any

from mmmpq.export.onnx.graph import deploy_extra


def compile_net(net: Any, threads: int) -> Any:
    """A net of OpenVINO for the CPU, its floats in 32 bits."""
    openvino = deploy_extra('openvino')
    hints = dict(INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1)
    hints['INFERENCE_PRECISION_HINT'] = 'f32'  # not bfloat16 where the CPU has it
    return openvino.Core().compile_model(net, 'CPU', hints)
