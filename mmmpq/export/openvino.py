"""Nets in OpenVINO."""

from functools import cache
from pathlib import Path
from typing import Any

from mmmpq.export.extras import deploy_extra


@cache
def core() -> Any:
    """The one core of a process, which stays until its end.

    Where the processor has AMX, each core replaces the stack that signals are handled
    on, and several leave one that is gone: the next signal ends the process, and a data
    loader's worker sends one as it ends (OpenVINO 2026.4).
    """
    return deploy_extra('openvino').Core()


def read_net(data: str | Path | bytes) -> Any:
    """A net of a file or of a file's content."""
    return core().read_model(data)


def compile_net(net: Any, threads: int) -> Any:
    """A net of OpenVINO for the CPU, its floats in 32 bits."""
    hints = dict(INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1)
    hints['INFERENCE_PRECISION_HINT'] = 'f32'  # not bfloat16 where the CPU has it
    return core().compile_model(net, 'CPU', hints)
