"""An ONNX file, checked against a target."""

from pathlib import Path
from typing import Any

from mmmpq.costs.hardware import PROFILES, Hardware
from mmmpq.export.extras import deploy_extra
from mmmpq.export.onnx.check.config import FINN, FINN_SOURCES, check_target
from mmmpq.export.onnx.check.verdict import Check
from mmmpq.export.onnx.target import Target
from mmmpq.fileio import check_file

QONNX = {'Quant', 'BipolarQuant', 'Trunc'}


def check_onnx(path: str | Path, target: str) -> Check:
    """What ``target`` does with each layer of an ONNX file, whoever wrote it.

    Args:
        path: A graph of QuantizeLinear and DequantizeLinear; for 'finn' one of QONNX.
        target: One of :data:`.config.CHECKED`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no ONNX file, or in another format than the target reads; the
            extra `deploy` is missing.
    """
    check_target(target)
    hardware = Hardware.load(target) if target in PROFILES else None
    if hardware and hardware.reads == 'float':
        raise ValueError(
            f'{path}: target {target} takes float nets, which its tools quantize; '
            'accepted is a config'
        )
    deploy_extra('onnx')
    from mmmpq.export.onnx.check.finn import check_finn
    from mmmpq.export.onnx.check.hardware_file import check_hardware
    from mmmpq.export.onnx.check.qdq import check_qdq

    model = _load(path)
    kinds = {node.op_type for node in model.graph.node}
    if (target == FINN) != bool(kinds & QONNX):
        found = 'nodes of QONNX' if kinds & QONNX else 'no node of QONNX'
        accepted = '--format qonnx' if target == FINN else '--format onnx'
        raise ValueError(
            f'{path}: found {found}; target {target} reads what mmmpq export '
            f'{accepted} writes'
        )
    if target == FINN:
        return Check(target, check_finn(model), FINN_SOURCES)
    fused = sorted(k for k in kinds if k.startswith('QLinear') or k == 'ConvInteger')
    if fused:
        raise ValueError(
            f'{path}: found operators on integers, such as {fused[0]}; accepted is a '
            'graph of QuantizeLinear and DequantizeLinear'
        )
    if hardware:
        return Check(target, check_hardware(model, hardware), hardware.sources)
    runtime = Target.load(target)
    return Check(target, check_qdq(model, runtime), runtime.sources)


def _load(path: str | Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    check_file(str(path), 'FILE')
    try:
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(f'{path}: it is no ONNX file ({error})') from error
    if not model.graph.node:
        raise ValueError(f'{path}: it is no ONNX file: found a graph of no nodes')
    return model
