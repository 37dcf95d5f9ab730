"""What a runtime makes of a file: one rule broken at a time, and what runtimes do."""

from itertools import product

import numpy as np
import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmmpq.export.latency.fused import integer_layers
from mmmpq.export.onnx.check.file import check_onnx
from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS, REFUSED

KINDS = 'Conv', 'ConvTranspose', 'Gemm', 'MatMul'
TYPES = 'uint8', 'int8'


def one_layer(g, path, kind='Conv', data='int8', weight='int8', out=True):
    g = type(g)((1, 4, 6, 6) if 'Conv' in kind else (4, 4))
    shape = (4, 4, 3, 3) if 'Conv' in kind else (4, 4)
    y = g.node(kind, g.pair('x', data), g.weight('conv', weight, shape=shape))
    return g.save(path, g.pair(y, data) if out else y)


@pytest.mark.parametrize('kind', KINDS)
def test_onnxruntime_does_what_is_foretold(kind, graph, path):
    for data, weight, out in product(TYPES, TYPES, (True, False)):
        one_layer(graph, path, kind, data, weight, out)
        (found,) = check_onnx(path, 'onnxruntime').verdicts
        assert found.name == 'conv' and found.type == kind
        wanted = bool(integer_layers(path))
        assert (found.does == INTEGERS) == wanted, (data, weight, out, found.why)


def test_openvino_wants_signed_weights_around_0(graph, path):
    """As OpenVINO 2026.4 computes these graphs."""
    for kind, data, out in product(KINDS, TYPES, (True, False)):
        for weight in TYPES:
            one_layer(graph, path, kind, data, weight, out)
            (found,) = check_onnx(path, 'openvino').verdicts
            assert found.does == (INTEGERS if weight == 'int8' else FLOAT)
    g = type(graph)()
    g.save(path, g.node('Conv', g.pair('x', 'uint8', zero=9), g.weight(zero=3)))
    (found,) = check_onnx(path, 'openvino').verdicts
    assert (
        found.does == FLOAT and 'zero point is 3 at most; accepted is 0' in found.why[0]
    )


CHANNELS = [0.1, 0.2, 0.3, 0.4]


def conv(g, kind='Conv', data=None, weight=None):
    data = data or g.pair('x')
    return g.node(kind, data, weight or g.weight())


BROKEN = {  # a graph's output: what TensorRT does, and what is said
    'nothing': (conv, INTEGERS, ''),
    'channels': (
        lambda g: conv(g, weight=g.weight(scale=CHANNELS, axis=0)),
        INTEGERS,
        '',
    ),
    'channels of a transposed one': (
        lambda g: conv(g, 'ConvTranspose', weight=g.weight(scale=CHANNELS, axis=1)),
        INTEGERS,
        '',
    ),
    'uint8': (
        lambda g: conv(g, data=g.pair('x', 'uint8')),
        REFUSED,
        'its type is uint8; accepted is int8',
    ),
    'int16': (
        lambda g: conv(g, data=g.pair('x', 'int16')),
        REFUSED,
        'its type is int16; accepted is int8',
    ),
    'unsigned weights': (
        lambda g: conv(g, weight=g.weight(kind='uint8')),
        REFUSED,
        'its type is uint8',
    ),
    'zero point': (
        lambda g: conv(g, data=g.pair('x', zero=-3)),
        REFUSED,
        'its zero point is 3 at most; accepted is 0',
    ),
    'zero point of a weight': (
        lambda g: conv(g, weight=g.weight(zero=1)),
        REFUSED,
        'DequantizeLinear0: its zero point is 1 at most',
    ),
    'scale': (
        lambda g: conv(g, data=g.pair('x', scale=-1.0)),
        REFUSED,
        'a scale is not above 0',
    ),
    'input channels': (
        lambda g: conv(g, weight=g.weight(scale=CHANNELS, axis=1)),
        FLOAT,
        'its scales lie along axis 1; accepted is 0, of the output channels',
    ),
    'output channels of a transposed one': (
        lambda g: conv(g, 'ConvTranspose', weight=g.weight(scale=CHANNELS, axis=0)),
        FLOAT,
        'its scales lie along axis 0; accepted is 1',
    ),
    'channels of an input': (
        lambda g: conv(g, data=g.pair('x', scale=CHANNELS, zero=[0] * 4)),
        REFUSED,
        '4 scales of an input; accepted is one',
    ),
    'float input': (
        lambda g: conv(g, data='x'),
        FLOAT,
        'its input is float: the input of the graph makes it',
    ),
    'float weight': (
        lambda g: conv(
            g, weight=g.constant('conv.weight', np.ones((4, 4, 3, 3), np.float32))
        ),
        FLOAT,
        'its weight is float: a constant makes it',
    ),
    'between': (
        lambda g: conv(g, data=g.node('Relu', g.pair('x'))),
        FLOAT,
        'its input is float: Relu Relu2 makes it',
    ),
    'integer clip': (
        lambda g: conv(g, data=clipped(g)),
        FLOAT,
        'clips integers of its input',
    ),
}


def clipped(g):
    s, z = g.constant('s', np.float32(0.1)), g.constant('z', np.int8(0))
    ends = g.constant('low', np.int8(-7)), g.constant('high', np.int8(7))
    q = g.node('Clip', g.node('QuantizeLinear', 'x', s, z), *ends)
    return g.node('DequantizeLinear', q, s, z)


@pytest.mark.parametrize('name', BROKEN)
def test_each_rule_of_tensorrt(name, graph, path):
    make, does, said = BROKEN[name]
    g = type(graph)()
    g.save(path, make(g))
    found = check_onnx(path, 'tensorrt')
    (layer,) = [v for v in found.verdicts if v.is_layer]
    assert layer.name == 'conv' and layer.does == does
    assert said in '; '.join(layer.why) and bool(said) == bool(layer.why)
    assert found.ok == (does == INTEGERS) and layer.quantized
    assert all('docs.nvidia.com' in source for source in found.sources)


def test_one_scale_for_each_channel_needs_an_opset(graph, path):
    g = type(graph)(opset=12)
    g.save(path, conv(g, weight=g.weight(scale=CHANNELS)))
    (layer,) = check_onnx(path, 'tensorrt').verdicts
    assert any('opset 12 has one scale for a tensor' in text for text in layer.why)


def test_a_quantizer_of_a_bias_has_tensorrt_refuse_the_file(graph, path):
    g = type(graph)()
    b = g.node(
        'DequantizeLinear',
        g.constant('b', np.ones(4, np.int32)),
        g.constant('bs', np.float32(0.1)),
    )
    g.save(path, g.node('Conv', g.pair('x'), g.weight(), b))
    found = check_onnx(path, 'tensorrt')
    assert not found.ok and found.verdicts[0].does == INTEGERS
    assert 'its type is int32' in found.verdicts[1].why[0]
    assert check_onnx(path, 'openvino').ok


def test_sums(graph, path):
    """Of a residual block: as TensorRT wants them, and as it does not."""
    for other, targets in {
        'quantized': ['tensorrt', 'openvino', 'onnxruntime'],
        'beside a layer': ['tensorrt'],
        'float': [],
    }.items():
        g = type(graph)()
        x = g.pair('x')
        y = g.node('Conv', x, g.weight(), pads=[1] * 4)
        y = g.pair(y) if other == 'quantized' else y
        out = g.node('Add', y, 'x' if other == 'float' else x)
        g.save(path, g.pair(out))
        for target in ('tensorrt', 'openvino', 'onnxruntime'):
            said = [v for v in check_onnx(path, target).verdicts if v.type == 'Add']
            assert (not said) == (target in targets), (other, target)
            assert all(v.does == FLOAT and 'is float' in v.why[0] for v in said)


def test_where_integers_end_is_named(graph, path):
    g = type(graph)()
    one = g.pair(conv(g))
    two = g.node('Conv', g.pair(g.node('Softplus', one)), g.weight('second'))
    g.save(path, g.pair(two))
    found = check_onnx(path, 'onnxruntime')
    assert found.ok
    (end,) = [v for v in found.verdicts if not v.is_layer]
    assert (end.type, end.does) == ('Softplus', FLOAT)
    assert end.why == ['it reads integers in float: here integers end']
    assert '1 operators between them not in integers' in found.summary


def test_a_shared_layer_is_as_bad_as_its_worst_call(graph, path):
    g = type(graph)()
    w = g.weight()
    one, two = g.node('Conv', g.pair('x'), w), g.node('Conv', 'x', w)
    g.save(path, g.node('Concat', one, two, axis=0))
    (layer,) = check_onnx(path, 'tensorrt').verdicts
    assert layer.does == FLOAT and len(layer.nodes) == 2


def test_a_clip_before_a_quantizer_goes_where_its_integers_end(graph, path):
    """As ONNX Runtime has it, which two quantizers of one tensor stop as well."""
    for kind, ends, twice in (
        ('uint8', True, False),
        ('int8', False, False),
        ('uint8', False, True),
    ):
        g = type(graph)()
        x = g.pair('x', kind)
        y = g.node('Relu', g.node('Conv', x, g.weight()))
        out = g.pair(y, kind)
        if twice:
            out = g.node('Concat', out, g.pair(y, kind, scale=0.3), axis=0)
        g.save(path, out)
        (layer,) = [v for v in check_onnx(path, 'onnxruntime').verdicts if v.is_layer]
        assert bool(integer_layers(path)) == ends == (layer.does == INTEGERS), kind
