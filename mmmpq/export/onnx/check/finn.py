"""What stops a QONNX file on its way into FINN.

The rules are those of its transformations, of which each is named beside its rule, as
of April 2026 (https://github.com/Xilinx/finn, src/finn/transformation; the pages are
FINN, Network Preparation, https://finn.readthedocs.io/en/latest/nw_prep.html, and the
source behind it):

* FoldQuantWeights: zero points of weights are one number, 0; a quantized weight is
  read by one node; a convolution's scales are one for each output channel.
* ConvertQuantActToMultiThreshold: zero points of inputs are one number, 0; widths are
  8 bits at most.
* QuantReluHandler, QuantIdentityHandler: behind a Relu an input is unsigned and not
  narrow, and everywhere else signed; the Relu goes into the thresholds, so that nobody
  else may read it. BipolarQuant behind no Relu has the scale 1.
* MoveLinearPastEltwiseAdd, InferAddStreamsLayer: both inputs of a sum have one scale
  and one type.
* convert_to_hw_layers and the streamlining before it: the operators.
"""

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto

from mmmpq.export.onnx.check.verdict import INTEGERS, REFUSED, Verdict, merged
from mmmpq.export.onnx.check.weights import RESHAPING, Net, named, size

QUANT = 'Quant', 'BipolarQuant'
BITS = 8
OPERATORS = {
    *('Conv', 'ConvTranspose', 'Gemm', 'MatMul', *QUANT, 'Trunc', *RESHAPING),
    *('Add', 'Sub', 'Mul', 'Div', 'Relu', 'BatchNormalization', 'Constant'),
    *('MaxPool', 'AveragePool', 'GlobalAveragePool', 'Resize', 'Upsample'),
    *('Concat', 'Gather', 'Pad', 'Split', 'TopK', 'Shape'),
}
PASSING = (*RESHAPING, 'MaxPool')


def check_finn(model: ModelProto) -> list[Verdict]:
    """The verdict on every layer, and on operators that stop FINN.

    Args:
        model: With nodes of QONNX.
    """
    return merged(_judge(Net(model)))


def _judge(net: Net) -> Iterator[Verdict]:
    told: set[str] = set()
    others = []
    for node in net.nodes:
        name, kind, is_layer = named(node), node.op_type, net.is_layer(node)
        if is_layer:
            why = list(_layer(net, node, told))
            name = net.layer_name(node)
        elif kind not in OPERATORS:
            why = ['FINN has no hardware for it']
        elif kind == 'Add' and not any(map(net.origin, node.input)):
            why = list(_sum(net, node))
        elif kind == 'Relu':
            why = list(_relu(net, node))
        else:
            continue
        does = REFUSED if why else INTEGERS
        verdict = Verdict(name, kind, does, why, is_layer=is_layer, nodes=[named(node)])
        if is_layer:
            yield verdict
        elif why:
            others.append(verdict)
    yield from others
    for node in net.nodes:
        at, kind = named(node), node.op_type
        if kind in QUANT and at not in told and (why := list(_quantizer(net, node))):
            yield Verdict(at, kind, REFUSED, why, is_layer=False, nodes=[at])


def _layer(net: Net, node: NodeProto, told: set[str]) -> Iterator[str]:
    for part, name in zip(('input', 'weight'), node.input, strict=False):
        quant = net.before(name, PASSING)
        if quant is None or quant.op_type not in QUANT:
            yield f'its {part} is float: {net.maker_of(name)} makes it, no Quant'
            continue
        told.add(named(quant))
        yield from _quantizer(net, quant)
        if part != 'weight':
            continue
        readers = net.readers[quant.output[0]]
        if len(readers) > 1:
            yield (
                f'its weight is read by {len(readers)} nodes; accepted is one: a head '
                'that several levels share is to be a copy for each'
            )
        scale = net.constant(quant.input[1])
        channels = 1 if node.op_type == 'ConvTranspose' else 0
        if 'Conv' not in node.op_type or size(scale) <= 1:
            continue
        if scale.ndim <= channels or scale.shape[channels] != size(scale):
            yield 'its scales are not one for each output channel'


def _quantizer(net: Net, node: NodeProto) -> Iterator[str]:
    """What of a quantizer FINN lacks."""
    at = f'{node.op_type} {named(node)}'
    is_weight = bool(net.origin(node.input[0]))
    before = net.maker.get(node.input[0])
    relu = before is not None and before.op_type == 'Relu'
    if node.op_type == 'BipolarQuant':
        scale = net.constant(node.input[1])
        if not (is_weight or relu) and (size(scale) != 1 or scale.item() != 1):
            yield f'{at}: its scale is not 1, and no Relu stands before it'
        return
    zero, bits = (net.constant(name) for name in node.input[2:4])
    if zero is None or np.any(zero):
        least = 'no constant' if zero is None else f'{np.abs(zero).max():g}'
        yield f'{at}: its zero point is {least}; accepted is 0'
    elif size(zero) > 1:
        yield f'{at}: its zero point is {size(zero)} numbers; accepted is one'
    if bits is None or not 1 <= bits.item() <= BITS:
        found = 'no constant' if bits is None else f'{bits.item():g}'
        yield f'{at}: its width is {found}; accepted are 1 to {BITS} bits'
    if is_weight:
        return
    signed, narrow = (_flag(node, key) for key in ('signed', 'narrow'))
    if relu and (signed or narrow):
        yield f'{at}: behind a Relu accepted is unsigned, with all levels'
    elif not relu and not signed:
        yield (
            f'{at}: it is unsigned, and {net.maker_of(node.input[0])} stands before '
            'it; accepted is a Relu'
        )


def _relu(net: Net, node: NodeProto) -> Iterator[str]:
    """A Relu goes into the thresholds of the one quantizer behind it."""
    readers = net.readers[node.output[0]]
    if len(readers) > 1 and any(r.op_type in QUANT for r in readers):
        yield (
            f'{len(readers)} nodes read it; accepted is one quantizer, into whose '
            'thresholds it goes: the others are to read what that one makes'
        )


def _sum(net: Net, node: NodeProto) -> Iterator[str]:
    read = [net.before(name, PASSING) for name in node.input]
    if not all(n is not None and n.op_type in QUANT for n in read):
        floats = [
            net.maker_of(name)
            for name, n in zip(node.input, read, strict=True)
            if n is None or n.op_type not in QUANT
        ]
        yield f'it adds what is float: {", ".join(floats)}'
        return
    scales = [net.constant(n.input[1]) for n in read]
    if any(scale is None or not np.array_equal(scale, scales[0]) for scale in scales):
        yield 'its inputs have different scales; accepted is one scale'
    kinds = {
        (
            n.op_type,
            _flag(n, 'signed'),
            *np.ravel(net.constant([*n.input, ''][3]) or ()),
        )
        for n in read
    }
    if len(kinds) > 1:
        yield 'its inputs have different types; accepted are one width and one sign'


def _flag(node: NodeProto, name: str) -> int:
    """An attribute of Quant; both of these are 1, and 0, by default."""
    values = [a.i for a in node.attribute if a.name == name]
    return values[0] if values else int(name == 'signed')
