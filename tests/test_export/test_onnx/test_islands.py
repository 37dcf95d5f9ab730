"""Integers from layer to layer: who reads what, and what a runtime makes of it."""

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.onnx import cut
from mmmpq.layers import calibrating, quantized_layers
from mmmpq.models import quantize
from mmmpq.policy import Policy, Precision

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmmpq.export.latency.bench import Session  # noqa: E402
from mmmpq.export.latency.fused import integer_layers  # noqa: E402
from mmmpq.export.onnx.graph import export_onnx  # noqa: E402
from mmmpq.export.onnx.islands import add_islands  # noqa: E402
from mmmpq.export.onnx.model import OnnxNetwork, sums_are_cut  # noqa: E402
from mmmpq.export.onnx.ranges import Seen, observe  # noqa: E402
from mmmpq.export.onnx.shared import Reader, shared_grid  # noqa: E402
from mmmpq.export.onnx.target import Target  # noqa: E402
from mmmpq.export.onnx.wires import Grid, Wires  # noqa: E402

# In turn over the layers of a net.
WIDTHS = {'W8A8': ['W8A8'], 'W4A4': ['W4A4'], 'mixed': ['W4A4', 'W8A8', 'W3A2', 'W6A5']}


def images(size=32, count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator)


@pytest.fixture(params=WIDTHS)
def resnet(request, classifier, settled):
    """A ResNet, its BatchNorms folded."""
    config = classifier()
    names = quantized_layers(settled(config))
    widths = WIDTHS[request.param]
    config.model.quant.policy = Policy(
        {n: Precision.parse(widths[i % len(widths)]) for i, n in enumerate(names)}
    )
    config.model.quant.fixed = {'*': None}
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    return model


def export(model, path, size=32, target='onnxruntime', **options):
    options = dict(vnni=not sums_are_cut()) | options
    return export_onnx(
        *(model, path, (3, size, size)),
        target=target,
        images=[images(size).numpy()],
        **options,
    )


def test_all_of_a_resnet_is_computed_in_integers(resnet, tmp_path):
    report = export(resnet, tmp_path / 'net.onnx')
    assert integer_layers(tmp_path / 'net.onnx').keys() == report['layers'].keys()
    found = Session(tmp_path / 'net.onnx', 1).ops
    again = len(report['islands']['requantized'])  # each by a sum with 0
    assert found['QLinearAdd'] == 4 + again
    assert found['QLinearGlobalAveragePool'] == 1
    assert found['QuantizeLinear'] == 1 and 'DequantizeLinear' not in found
    assert found['QLinearConv'] == len(report['layers']) - 1  # and QGemm
    assert not {'Conv', 'FusedConv', 'Relu', 'GlobalAveragePool'} & set(found)
    assert found['Add'] == 1  # the bias of the linear layer
    assert report['islands']['open'] == []


def test_layers_read_what_their_own_quantizers_give(resnet, tmp_path, tensors_of):
    """Of the float tensor before the island's. Those that read the island's own grid
    are within half a step of each, the others read their own levels."""
    report = export(resnet, tmp_path / 'net.onnx')['islands']
    wires = Wires(onnx.load(tmp_path / 'net.onnx').graph)
    reads = {}
    for node in onnx.load(tmp_path / 'net.onnx').graph.node:
        if node.op_type not in ('Conv', 'Gemm'):
            continue
        x = node.input[0]
        at = wires.maker[x]
        own = wires.grid(at)
        back = 'DequantizeLinear', 'Clip', 'Reshape', 'QuantizeLinear'
        while at.op_type in back or '/zero' in ''.join(at.input):  # a sum with 0
            x = at.input[0]
            at = wires.maker.get(x, onnx.NodeProto())
        layer = wires.maker[node.input[1]].input[0].rpartition('.weight_')[0]
        reads[layer] = node.input[0], x, own
    names = [name for read, x, _ in reads.values() for name in (read, x)]
    values = tensors_of(
        tmp_path / 'net.onnx',
        [n for n in dict.fromkeys(names) if n != 'images'],
        images().numpy(),
    )
    values['images'] = images().numpy()
    layers = quantized_layers(resnet)
    assert reads.keys() == layers.keys()
    for name, (read, x, own) in reads.items():
        raw = torch.from_numpy(values[x])
        with torch.no_grad():
            layer = layers[name]
            wanted = layer.a_quantizer(raw, layer.precision.a_bits).numpy()
        found = values[read].reshape(wanted.shape)
        off = np.abs(found - wanted)
        if name in report['shared']:
            assert off.max() <= own.scale * 1.001
        else:
            assert (off > 1e-5).mean() < 1e-4, name


@pytest.mark.parametrize('size', [32, 48])
def test_integers_and_floats_of_one_file_agree(resnet, size, tmp_path, tensors_of):
    """What ONNX Runtime fuses computes what is written."""
    export(resnet, tmp_path / 'net.onnx', size)
    x = images(size)
    (wanted,) = tensors_of(tmp_path / 'net.onnx', ['cls_score'], x.numpy()).values()
    found = OnnxNetwork(tmp_path / 'net.onnx')(x)['outputs'].numpy()
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).max()


def test_the_deviation_that_is_told(resnet, tmp_path, tensors_of):
    told = export(resnet, tmp_path / 'net.onnx')['islands']['deviation']
    export(resnet, tmp_path / 'without.onnx', target=None)
    one, other = (
        tensors_of(tmp_path / f'{n}.onnx', ['cls_score'], images().numpy())['cls_score']
        for n in ('net', 'without')
    )
    wanted = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert told == {'cls_score': pytest.approx(wanted, rel=0.05)}
    assert 0 < wanted < 0.3


def detector(config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'):
    cfg = get_config(config)
    init_default_scope('mmdet')
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(
                    depth=18, base_channels=8, stem_channels=8, init_cfg=None
                ),
                neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
                bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
            )
        )
    )
    model = quantize(MODELS.build(cfg.model).eval(), policy='W8A8', fixed={'*': None})
    with torch.no_grad(), calibrating(model):
        cut.network(model, images(64))
    fold_batchnorm(model, (3, 160, 160))
    return model


def test_all_of_a_retinanet(tmp_path):
    """Through the FPN's sums and what is resized for them, to the head's outputs."""
    model = detector()
    report = export(model, tmp_path / 'net.onnx', 64)
    assert integer_layers(tmp_path / 'net.onnx').keys() == report['layers'].keys()
    found = Session(tmp_path / 'net.onnx', 1, (3, 64, 64)).ops
    assert found['QLinearAdd'] == 8 + 2 and found['QuantizeLinear'] == 1
    assert found['DequantizeLinear'] == 10  # of the outputs: two for each level
    assert report['islands']['open'] == []
    assert max(report['islands']['deviation'].values()) < 0.1
    outputs = cut.leaves(OnnxNetwork(tmp_path / 'net.onnx')(images(96)))
    with torch.no_grad():
        wanted = cut.leaves(cut.network(model, images(96)))
    for one, other in zip(outputs, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < 0.2 * other.norm()


def test_where_integers_end_is_named(tmp_path):
    model = detector(config='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    report = export(model, tmp_path / 'net.onnx', 64)
    ends = {name.split()[0] for name in report['islands']['open']}
    assert 'InstanceNormalization' in ends or 'GroupNormalization' in ends
    assert integer_layers(tmp_path / 'net.onnx').keys() == report['layers'].keys()


def test_float_layers_stay_float(classifier, settled, tmp_path):
    """And so does what is added to them, until a convolution makes integers of it."""
    config = classifier(fixed={'*': None})
    names = list(quantized_layers(settled(config)))
    widths = dict.fromkeys(names, Precision(8, 8))
    config.model.quant.policy = Policy(
        {**widths, 'backbone.layer1.0.conv2': Precision(32, 32)}
    )
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    report = export(model, tmp_path / 'net.onnx')
    found = Session(tmp_path / 'net.onnx', 1).ops
    assert found['QLinearAdd'] == 2
    assert {name.split()[0] for name in report['islands']['open']} == {'Add', 'Conv'}


# ------------------------------------------------------------------- one grid for all


def reader(scale, low, high, point=0, kind='uint8'):
    return Reader('layer', Grid(float(np.float32(scale)), point, kind), low, high)


def seen(values):
    values = torch.as_tensor(values, dtype=torch.float32).reshape(1, -1)
    return Seen(float(values.min()), float(values.max()), values)


def test_layers_that_quantize_alike_keep_their_grid():
    one = reader(0.1, 0, 15)
    assert shared_grid([one, one], None, None, 'uint8') == one.grid


@pytest.mark.parametrize('levels', [(0, 3), (0, 15), (0, 127), (-7, 7), (-31, 31)])
@pytest.mark.parametrize('more', [1.0, 1.3, 2.9, 9.0])
def test_to_round_twice_is_to_round_once(levels, more):
    """For few bits beside a sum whose range is ``more`` times the layer's."""
    point = 128 if levels[0] < 0 else 0
    low, high = (q + point for q in levels)
    few = reader(0.37, low, high, point)
    x = np.linspace(-1, 1, 100_003) * few.range[1] * more * 1.1
    wanted = (min(few.range[0], 0) * more, few.range[1] * more)
    grid = shared_grid([few], seen(x.clip(*wanted)), wanted, 'uint8')
    ratio, room = few.grid.scale / grid.scale, 255 / (high - low) / more
    if room < 1 or 2.1 < room < 3:  # 1 would leave too little, 3 is too much
        wanted = Grid((wanted[1] - wanted[0]) / 255, grid.point, 'uint8').range
        assert grid.range == pytest.approx(wanted)
        return
    odd = 2 * int((room - 1) / 2 + 1e-9) + 1
    assert ratio == pytest.approx(odd, rel=1e-6)
    once = few.grid.integer(x.clip(*few.range))
    twice = few.grid.integer(grid.value(grid.integer(x))).clip(low, high)
    border = np.abs((x / few.grid.scale) % 1 - 0.5) < 1e-4
    np.testing.assert_array_equal(twice[~border], once[~border])


def test_a_trained_grid_of_8_bits_is_taken_where_it_does_no_harm():
    x = np.linspace(0, 1, 10_001)
    near, far = reader(1.1 / 255, 0, 255), reader(2 / 255, 0, 255)
    held = seen(x)
    wanted = held.fit('uint8')
    assert wanted == (0, pytest.approx(1, rel=0.01))
    assert shared_grid([near], held, wanted, 'uint8') == near.grid
    narrow = reader(0.5 / 255, 0, 255)  # would clip half of what a sum is to have
    assert shared_grid([narrow], held, wanted, 'uint8').range == pytest.approx(wanted)
    assert shared_grid([near, far], None, None, 'uint8') == far.grid


def test_grids_around_zero():
    held = seen([-3.0, 1.0, 2.0])
    grid = shared_grid([], held, held.fit('int8'), 'int8')
    assert grid.point == 0 and grid.scale == pytest.approx(3 / 127, rel=0.01)
    grid = shared_grid([], held, held.ends, 'uint8')
    assert grid.scale == pytest.approx(5 / 255) and grid.point == 153


# ------------------------------------------------------------------ TensorRT and errors


def test_signed_files(classifier, settled, tmp_path):
    """int8 around 0 everywhere, and clips in float in front."""
    config = classifier(policy='W8A7', fixed={'*': None})
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    export(model, tmp_path / 'net.onnx', target='tensorrt')
    graph = onnx.load(tmp_path / 'net.onnx').graph
    wires = Wires(graph)
    kinds = ('QuantizeLinear', 'DequantizeLinear')
    for node in (n for n in graph.node if n.op_type in kinds):
        point = wires.constant(node.input[2])
        assert point.dtype == np.int8 and not point.any()
    clips = [n for n in graph.node if n.op_type == 'Clip']
    assert clips and {wires.constant(n.input[1]).dtype.name for n in clips} == {
        'float32'
    }
    with torch.no_grad():
        wanted = model.head(model.extract_feat(images()))
    found = OnnxNetwork(tmp_path / 'net.onnx')(images())['outputs']
    assert (found - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(target='tensorflow'),
            "target: found 'tensorflow'; accepted are generic, onnxruntime, openvino, "
            'tensorrt',
        ),
        (
            dict(target='onnxruntime', containers='auto'),
            "containers: found 'auto'; target onnxruntime computes in integers of 8",
        ),
        (
            dict(target='tensorrt'),
            r'target tensorrt: it has int8 around 0 alone; .* backbone\.layer1\.0\.'
            r'.* and \d+ more; accepted are inputs from 0 of at most 7 bits',
        ),
        (dict(images=[]), 'images: found none; --target takes ranges from some'),
        (
            dict(images=[np.zeros((1, 3, 40, 32), np.float32)]),
            r'images: found \(3, 40, 32\) .* exported for \(3, 32, 32\)',
        ),
    ],
)
def test_what_is_refused(options, message, classifier, settled, tmp_path):
    model = settled(classifier(policy='W8A8', fixed={'*': None}))
    options = dict(target='onnxruntime', images=[images().numpy()]) | options
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32), **options)
    assert not list(tmp_path.iterdir())


def test_inputs_of_16_bits_have_no_target(classifier, settled, tmp_path):
    model = settled(classifier(policy='W8A16'))
    with pytest.raises(ValueError, match=r'found inputs of 16 in backbone\.layer1'):
        export_onnx(
            *(model, tmp_path / 'net.onnx', (3, 32, 32)),
            target='onnxruntime',
            images=[images().numpy()],
        )
    assert not list(tmp_path.iterdir())


class Sums(nn.Module):
    """A tensor that a layer of 4 bits, one of 8, a sum and an output read."""

    def __init__(self):
        super().__init__()
        self.first, self.few, self.many = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.head = nn.Identity()

    def extract_feat(self, x):
        x = self.first(x).relu()
        return self.few(x) + x, self.many(x) + x


def test_readers_of_several_widths(tmp_path):
    """4 bits quantize once more, 8 bits read the tensor, sums likewise."""
    widths = dict(first='W8A8', few='W4A4', many='W8A8')
    policy = Policy({n: Precision.parse(p) for n, p in widths.items()})
    model = quantize(Sums(), policy=policy, fixed={'*': None}).eval()
    with torch.no_grad(), calibrating(model):
        model.extract_feat(images())
    report = export(model, tmp_path / 'net.onnx')['islands']
    assert report['requantized'] == ['few'] and report['shared'] == ['many']
    graph = onnx.load(tmp_path / 'net.onnx').graph
    wires = Wires(graph)
    at = {n.name: n for n in graph.node if n.op_type == 'Conv'}
    few = wires.grid(wires.maker[at['/few/Conv'].input[0]])
    many = wires.grid(wires.maker[at['/many/Conv'].input[0]])
    ratio = few.scale / many.scale
    assert ratio == pytest.approx(round(ratio), rel=1e-5) and round(ratio) % 2 == 1
    assert Session(tmp_path / 'net.onnx', 1).ops['QLinearAdd'] == 3


def test_what_is_seen_of_a_tensor(classifier, settled, tmp_path, tensors_of):
    model = settled(classifier(policy='W8A8'))
    export(model, tmp_path / 'net.onnx', target=None)
    graph = onnx.load(tmp_path / 'net.onnx')
    batches = [images().numpy(), images(count=3).numpy()]
    found = observe(graph, ['cls_score'], batches)['cls_score']
    values = [
        tensors_of(tmp_path / 'net.onnx', ['cls_score'], b)['cls_score']
        for b in batches
    ]
    values = np.concatenate(values)
    assert found.low == pytest.approx(values.min(), rel=1e-5)
    assert found.ends == (min(found.low, 0), max(found.high, 0))
    assert found.sample.shape == (1, values.size)
    before = graph.SerializeToString()
    add_islands(graph, Target.load('generic'), batches)
    assert graph.SerializeToString() != before
