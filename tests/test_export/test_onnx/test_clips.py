"""Clips around a quantizer, as one of integers or floats: the same to the last bit."""

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
runtime = pytest.importorskip('onnxruntime')

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmmpq.export.onnx.clips import fold_clips  # noqa: E402

BASIC = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # fuses nothing
KINDS = {'uint8': np.uint8, 'int8': np.int8}


def chain(clips, scale, point, kind, levels=None):
    """x -> clips -> QuantizeLinear -> [Clip of integers] -> DequantizeLinear."""
    nodes, constants, x = [], {}, 'x'

    def add(op, inputs, **attributes):
        name = f'y{len(nodes)}'
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(value, dtype):
        name = f'c{len(constants)}'
        constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    for clip in clips:
        if clip == 'Relu':
            x = add('Relu', [x])
        else:
            ends = ['' if e is None else constant(e, np.float32) for e in clip]
            x = add('Clip', [x, *ends])
    grid = [constant(scale, np.float32), constant(point, KINDS[kind])]
    x = add('QuantizeLinear', [x, *grid])
    if levels:
        x = add('Clip', [x, *(constant(q, KINDS[kind]) for q in levels)])
    x = add('DequantizeLinear', [x, *grid])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])
        for name in ('x', x)
    ]
    graph = helper.make_graph(nodes, 'chain', ends[:1], ends[1:], constants.values())
    opsets = [helper.make_opsetid('', 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model, x, level=BASIC):
    options = runtime.SessionOptions()
    options.graph_optimization_level = level
    session = runtime.InferenceSession(model.SerializeToString(), options)
    name = session.get_inputs()[0].name
    return session.run(None, {name: x})


CLIPS = {
    'relu': ['Relu'],
    'relu6': [(0, 6)],
    'both sides': [(-1.3, 2.7)],
    'below': [(0.31, None)],
    'above': [(None, 1.9)],
    'twice': [(-2, 3), (-1.01, 7)],
    'relu of relu6': ['Relu', (0, 6)],
    'apart': [(0, 1), (2, 3)],
}
POINTS = [('uint8', 0), ('uint8', 128), ('uint8', 3), ('int8', 0), ('int8', -128)]


@pytest.mark.parametrize('to', ['integer', 'float'])
@pytest.mark.parametrize('levels', [None, (2, 9)])
@pytest.mark.parametrize(('kind', 'point'), POINTS)
@pytest.mark.parametrize('clips', CLIPS.values(), ids=CLIPS)
def test_equal_to_the_last_bit(clips, kind, point, levels, to):
    """At ties, at the clips' ends, beyond the type, for scales of any size."""
    random = np.random.default_rng(0)
    for scale in (0.25, 1 / 63, 6 / 255, 6 / 15, 0.0471, 3.0):
        x = np.concatenate(
            [
                np.arange(-600, 601) * scale / 2,
                random.normal(0, 4, 500),
                [e for c in clips if c != 'Relu' for e in c if e is not None],
                [0, np.inf, -np.inf, 1e30, -1e30],
            ]
        ).astype(np.float32)
        x = np.concatenate([x, np.nextafter(x, np.float32(0))])
        model = chain(clips, scale, point, kind, levels)
        (wanted,) = run(model, x)
        assert fold_clips(model.graph, to) == len(clips)
        (found,) = run(model, x)
        np.testing.assert_array_equal(found, wanted)
        left = [n for n in model.graph.node if n.op_type in ('Relu', 'Clip')]
        assert len(left) <= 1
        assert all((n.input[0] == 'x') == (to == 'float') for n in left)


@pytest.mark.parametrize(
    ('clips', 'scale', 'point', 'left'),
    [
        (['Relu'], 0.1, 0, 0),
        (['Relu'], 0.1, 128, 1),
        ([(0, 6)], 6 / 255, 0, 0),
        ([(0, 6)], 5 / 255, 0, 0),
        ([(0, 6)], 7 / 255, 0, 1),
    ],
)
@pytest.mark.parametrize('to', ['integer', 'float'])
def test_what_the_type_does_anyway_is_not_written(clips, scale, point, left, to):
    model = chain(clips, scale, point, 'uint8')
    fold_clips(model.graph, to)
    assert [n.op_type for n in model.graph.node].count('Clip') == left


@pytest.mark.parametrize(
    ('to', 'op'), [('integer', 'QuantizeLinear'), ('float', 'Clip')]
)
def test_levels_of_few_bits_are_clipped_where_it_is_said(to, op):
    """Without a clip before it, too."""
    model = chain([], 0.1, 0, 'uint8', levels=(0, 15))
    fold_clips(model.graph, to)
    assert [n.op_type for n in model.graph.node if n.input[0] == 'x'] == [op]


def test_a_clip_that_others_read_stays():
    model = chain([(0, 6)], 0.1, 0, 'uint8')
    shape = [helper.make_tensor_value_info('y0', TensorProto.FLOAT, [None])]
    model.graph.output.extend(shape)
    assert fold_clips(model.graph) == 0
    assert model.graph.node[0].op_type == 'Clip'


@pytest.mark.parametrize('to', ['integer', 'float'])
def test_one_clip_before_two_quantizers(to):
    model = chain([(0, 6)], 0.1, 0, 'uint8')
    scale = numpy_helper.from_array(np.float32(0.01), 'fine')
    model.graph.initializer.append(scale)
    old = model.graph.node[1].input[2]
    model.graph.node.extend(
        [
            helper.make_node('QuantizeLinear', ['y0', 'fine', old], ['q']),
            helper.make_node('DequantizeLinear', ['q', 'fine', old], ['z']),
        ]
    )
    more = helper.make_tensor_value_info('z', TensorProto.FLOAT, [None])
    model.graph.output.append(more)
    x = np.linspace(-1, 9, 1001, dtype=np.float32)
    wanted = run(model, x)
    assert fold_clips(model.graph, to) == 1
    for one, other in zip(run(model, x), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('policy', ['W8A8', 'W4A4'])
def test_relu6_no_longer_keeps_convolutions_in_float(policy, settled, tmp_path):
    """Of a MobileNetV2 whose activations reach 6: those behind which ReLU6 stands."""
    from mmengine.config import Config

    from mmmpq.export.fold import fold_batchnorm
    from mmmpq.export.latency.fused import integer_layers
    from mmmpq.export.onnx.graph import export_onnx
    from mmmpq.layers import quantized_layers

    model = settled(
        Config(
            dict(
                default_scope='mmpretrain',
                data_preprocessor=dict(num_classes=4),
                model=dict(
                    type='mmmpq.QuantModel',
                    base_type='ImageClassifier',
                    quant=dict(
                        policy=policy,
                        fixed={'*': None},
                        quantizer=dict(type='LSQQuantizer'),
                    ),
                    backbone=dict(type='MobileNetV2', widen_factor=0.5),
                    neck=dict(type='GlobalAveragePooling'),
                    head=dict(type='LinearClsHead', num_classes=4, in_channels=1280),
                ),
            )
        )
    )
    fold_batchnorm(model, (3, 32, 32))
    layers = quantized_layers(model)
    for layer in layers.values():
        if not layer.a_quantizer.signed:
            top = 2**layer.precision.a_bits - 1
            layer.a_quantizer.step.data.fill_(7 / top)  # beyond 6
    export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32))
    graph = onnx.load(tmp_path / 'net.onnx').graph
    constants = {t.name: t for t in graph.initializer}
    clips = [n for n in graph.node if n.op_type == 'Clip']
    in_float = [n.name for n in clips if n.input[1] not in constants]
    assert in_float == ['/backbone/conv2/activate/Clip']  # before pooling
    before_relu6 = [
        name
        for name in layers
        if name.startswith('backbone.layer') and layers[name].out_channels > 90
    ]
    assert len(before_relu6) > 10
    assert not set(before_relu6) - set(integer_layers(tmp_path / 'net.onnx'))
