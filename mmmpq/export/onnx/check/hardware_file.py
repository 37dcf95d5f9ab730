"""An ONNX file, checked against a hardware profile."""

import re

import numpy as np
from onnx import ModelProto, NodeProto

from mmmpq.costs.hardware import Hardware
from mmmpq.export.onnx.check.hardware import faults_of, verdict_on
from mmmpq.export.onnx.check.verdict import Verdict, merged
from mmmpq.export.onnx.check.weights import RESHAPING, Net, named, size
from mmmpq.policy import FLOAT, Precision

PASSING = *RESHAPING, 'MaxPool', 'Clip'


def check_hardware(model: ModelProto, hardware: Hardware) -> list[Verdict]:
    """The verdict on every layer of a graph of QuantizeLinear and DequantizeLinear."""
    net = Net(model)
    return merged(_layer(net, n, hardware) for n in net.nodes if net.is_layer(n))


def _layer(net: Net, node: NodeProto, hardware: Hardware) -> Verdict:
    kind, bits, counts, shifted = _kind(net, node), [], [], []
    for tensor in (node.input[1], node.input[0]):
        pair = net.before(tensor, PASSING)
        if pair is None or pair.op_type != 'DequantizeLinear':
            bits.append(32)
            counts.append(1)
            shifted.append(False)
            continue
        stored = net.constant([*pair.input, ''][2])
        values = net.constant(pair.input[0]) if stored is None else stored
        type_ = 'uint8' if values is None else values.dtype.name
        bits.append(int(re.sub(r'\D', '', type_)))
        counts.append(size(net.constant(pair.input[1])))
        shifted.append(stored is not None and bool(np.any(stored.astype(np.int64))))
    at = Precision(*bits)
    faults = list(faults_of(hardware, kind, counts, shifted))
    does, why = verdict_on(hardware, kind, at, faults, 'it is not quantized')
    why, quantized = [why] if why else [], at != FLOAT
    name = net.layer_name(node)
    return Verdict(name, kind, does, why, quantized=quantized, nodes=[named(node)])


def _kind(net: Net, node: NodeProto) -> str:
    """Its type, of :data:`mmmpq.costs.layer_types.LAYER_TYPES`."""
    if 'Conv' not in node.op_type:
        return 'Linear'
    groups = next((a.i for a in node.attribute if a.name == 'group'), 1)
    shape = np.shape(net.constant(net.origin(node.input[1])))
    depthwise = node.op_type == 'Conv' and groups > 1 and shape[1] == 1
    return f'{"Depthwise" if depthwise else ""}{node.op_type}{len(shape) - 2}d'
