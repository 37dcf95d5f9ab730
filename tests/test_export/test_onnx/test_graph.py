"""Exported files against the models they come from, in ONNX Runtime."""

import itertools
import sys

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.export.integers import activation_levels, weight_integers
from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork, sums_are_cut
from mmmpq.layers import QuantConv2d, QuantLinear, quantized_layers
from mmmpq.layers.base import calibrating
from mmmpq.models import quantize
from mmmpq.policy import SKIP, Policy, Precision

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmmpq.export.latency.fused import integer_layers  # noqa: E402

RESNET = {'depth': 18, 'base_channels': 16, 'stem_channels': 16, 'init_cfg': None}
FPN = {'in_channels': [16, 32, 64, 128], 'out_channels': 32}
NETS = {
    'resnet18': (
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        {'backbone': RESNET, 'head': dict(in_channels=128)},
    ),
    'mobilenet_v2': (
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        {'backbone': dict(widen_factor=0.5)},
    ),
    'retinanet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        {'bbox_head': dict(in_channels=32, feat_channels=32, stacked_convs=2)},
    ),
    'fcos': (
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        {'bbox_head': dict(in_channels=32, feat_channels=32, stacked_convs=2)},
    ),
    'faster-rcnn': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {
            'rpn_head': dict(in_channels=32, feat_channels=32),
            'roi_head': {
                'bbox_roi_extractor': dict(out_channels=32),
                'bbox_head': dict(in_channels=32, fc_out_channels=32),
            },
        },
    ),
}
CLASSIFIERS = ('resnet18', 'mobilenet_v2')
# In turn over the layers of a net.
WIDTHS = ['W4A4', 'W3A5', 'W2A3', 'W8A4', 'W5A4', 'W32A6', 'W6A32', 'W6A6']


@torch.no_grad()
def zoo(name, widths=WIDTHS, images=None):
    """A net of the toolboxes at random weights, calibrated on ``images``."""
    config, changes = NETS[name]
    cfg = get_config(config)
    init_default_scope(config.split('::')[0])
    if name not in CLASSIFIERS:
        changes = {'backbone': RESNET, 'neck': FPN, **changes}
    cfg.merge_from_dict({'model': changes})
    cfg = cfg.model
    model = MODELS.build(cfg)
    names = [
        n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    precisions = zip(names, map(Precision.parse, itertools.cycle(widths)), strict=False)
    return settled_on(quantize(model, policy=Policy(dict(precisions))), images)


@torch.no_grad()
def settled_on(model, images):
    for module in model.modules():
        if getattr(module, 'bias', None) is not None:
            module.bias.normal_(0, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with calibrating(model.eval()):
        onnx_cut.network(model, images)
    return model


def errors(model, network, images):
    """Of each image: the largest error over its outputs' range, and the mean one."""
    with torch.no_grad():
        ours = onnx_cut.leaves(onnx_cut.network(model, images))
    theirs = onnx_cut.leaves(network(images))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    relative = [
        ((a - b).abs() / a.abs().max().clamp_min(1e-3)).flatten(1)
        for a, b in zip(ours, theirs, strict=True)
    ]
    largest = torch.stack([error.amax(1) for error in relative]).amax(0)
    return largest, torch.cat(relative, 1).mean(1)


@pytest.mark.parametrize('containers', ['auto', '8bit'])
@pytest.mark.parametrize('name', ['mobilenet_v2', 'retinanet'])
def test_inputs_of_16_bits(name, containers, tmp_path):
    # Of 65,535 levels the other one that a value tips to is hardly another value.
    images = torch.randn(2, 3, 64, 64)
    model = zoo(name, ['W8A16', 'W4A16', 'W32A16'], images)
    file = tmp_path / 'net.onnx'
    report = export_onnx(model, file, (3, 64, 64), containers=containers)
    largest, _ = errors(model, OnnxNetwork(file), images)
    assert largest.max() < 2e-3
    assert {found['input'] for found in report['layers'].values()} == {'uint16'}
    with pytest.raises(ValueError, match=r'opset: found 20, .* of 16 bits; 21'):
        export_onnx(model, tmp_path / 'old.onnx', (3, 64, 64), 20, '8bit')
    assert not (tmp_path / 'old.onnx').exists()


@pytest.mark.parametrize('name', NETS)
def test_nets_of_the_toolboxes(name, tmp_path):
    """In another number, and detectors in another size, than the trace has seen.

    A sum in another order tips a value now and then to its other level, which reaches
    the outputs of its image alone, in a net of random weights as far as it likes: most
    images agree to the last bits, and but for one all agree on the whole.
    """
    images = torch.randn(4, 3, 64 if name in CLASSIFIERS else 96, 64)
    model = zoo(name, images=images)
    report = export_onnx(model, tmp_path / 'net.onnx', (3, 64, 64), containers='auto')
    largest, mean = errors(model, OnnxNetwork(tmp_path / 'net.onnx'), images)
    assert (largest < 1e-4).sum() >= 2
    assert mean.sort().values[:3].max() < 1e-2

    layers = quantized_layers(model)
    for layer, found in report['layers'].items():
        w_bits, a_bits = layers[layer].precision
        for bits, most, key in (w_bits, w_bits, 'weight'), (a_bits, w_bits, 'input'):
            kind = '4' if max(bits, most) <= 4 else '8' if bits < 32 else 'float'
            assert found.get(key, 'float').endswith(kind)
    in_graph = [n for n in layers if not n.startswith('roi_head')]
    assert sorted(report['layers']) == sorted(in_graph)
    graph = onnx.load(tmp_path / 'net.onnx').graph
    assert {node.domain for node in graph.node} == {''}
    sizes = {t.name: t for t in graph.initializer}
    assert not [
        n
        for n in in_graph
        if f'{n}.weight' in sizes and 'weight' in report['layers'][n]
    ]
    assert report['bytes'] == (tmp_path / 'net.onnx').stat().st_size


def test_convolutions_in_int8(tmp_path):
    """ONNX Runtime computes them in integers, with biases rounded to s_a s_w."""
    images = torch.randn(4, 3, 64, 64)
    model = zoo('retinanet', ['W8A8'], images)
    export_onnx(model, tmp_path / 'net.onnx', (3, 64, 64))
    assert errors(model, OnnxNetwork(tmp_path / 'net.onnx'), images)[1].max() < 1e-2


QUANTIZERS = {
    'linear': dict(quantizer=dict(type='LinearQuantizer')),
    'linear per channel': dict(
        quantizer=dict(type='LinearQuantizer', per_channel=True)
    ),
    'scale clip': dict(quantizer=dict(type='LinearQuantizer', range='scale_clip')),
    'lsq per channel': dict(quantizer=dict(type='LSQQuantizer', per_channel=True)),
    'gaussian': dict(quantizer=dict(type='GaussianQuantizer')),
    'plus': dict(quantizer=dict(type='LSQPlusQuantizer')),
    'dorefa': dict(
        w_quantizer=dict(type='DoReFaQuantizer'),
        a_quantizer=dict(type='PACTQuantizer'),
    ),
    'batch': dict(
        w_quantizer=dict(type='LSQQuantizer'), a_quantizer=dict(type='BatchQuantizer')
    ),
}


def dequantized_weight(graph, name):
    """What the nodes of ``graph`` make of a layer's integers, by hand."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = {n.op_type: n for n in graph.node if n.name.startswith(f'{name}.weight/')}
    q, scale, *zero = (
        stored[i].astype(np.float32) for i in nodes['DequantizeLinear'].input
    )
    axes = (-1, *[1] * (q.ndim - 1)) if scale.ndim else ()
    value = (q - (zero[0].reshape(axes) if zero else 0)) * scale.reshape(axes)
    return value - stored[nodes['Sub'].input[1]] if 'Sub' in nodes else value


@pytest.mark.parametrize(
    ('containers', 'vnni'), [('auto', True), ('8bit', True), ('8bit', False)]
)
@pytest.mark.parametrize('name', QUANTIZERS)
def test_every_quantizer_at_every_width(
    name, containers, vnni, classifier, settled, tmp_path
):
    """Weights are equal but for the rounding of a zero point that is no integer."""
    config = classifier(**QUANTIZERS[name])
    widths = zip((8, 2, 3, 4, 5, 6, 7) * 2, (8, 7, 6, 5, 4, 3, 2) * 2, strict=True)
    pairs = zip(quantized_layers(settled(config)), widths, strict=False)
    config.model.quant.policy = Policy({n: Precision(*p) for n, p in pairs})
    model = settled(config)
    for i, module in enumerate(model.modules()):
        if getattr(module, 'per_subnet', False):
            module.set_statistics(torch.tensor([-0.3 * (i % 3), 2.0]))
            module.shift.data.fill_(0.2)
    path = tmp_path / 'net.onnx'
    options = dict(containers=containers, vnni=vnni)
    report = export_onnx(model, path, (3, 32, 32), **options)['layers']
    graph = onnx.load(tmp_path / 'net.onnx').graph
    for layer, module in quantized_layers(model).items():
        wanted = module.w_quantizer(module.weight, module.precision.w_bits).detach()
        found = torch.from_numpy(dequantized_weight(graph, layer))
        zero = weight_integers(module)[2]
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=0 if zero is None else 2e-7 * wanted.abs().max()
        )
        bits = 4 if containers == 'auto' and module.precision.w_bits <= 4 else 8
        unsigned = name == 'dorefa' or (module.precision == (8, 8) and not vnni)
        assert report[layer]['weight'] == f'{"u" * unsigned}int{bits}'
        assert report[layer]['input'][-1] in f'8{bits}'
        assert report[layer]['weight_bytes'] < module.weight.numel() * bits / 8 + 200
    images = torch.randn(4, 3, 32, 32)
    largest, mean = errors(model, OnnxNetwork(tmp_path / 'net.onnx'), images)
    assert (largest < 1e-4).sum() >= 2
    assert mean.max() < 1e-2


class Layer(nn.Module):
    """The least that is a classifier: a 1 x 1 convolution with the weight 1."""

    def __init__(self, bits, signed, kind='LSQQuantizer', w_bits=8, **quantizer):
        super().__init__()
        weight = dict(w_bits=w_bits, w_quantizer=dict(type='LSQQuantizer'))
        activation = dict(a_bits=bits, a_quantizer=dict(type=kind, **quantizer))
        self.conv = QuantConv2d(1, 1, 1, bias=False, **weight, **activation)
        self.conv.w_quantizer.set_sign(True)
        self.conv.w_quantizer.step.data.fill_(1 / min(2 ** (w_bits - 2), 64))
        self.conv.weight.data.fill_(1)
        self.conv.a_quantizer.set_sign(signed)
        self.head = nn.Flatten()

    def extract_feat(self, images):
        return self.conv(images)


@pytest.mark.parametrize('w_bits', [2, 8])
@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('signed', [True, False])
def test_ties_and_values_out_of_range(bits, signed, w_bits, tmp_path):
    """Both round halves to even; the step is a power of two, so that halves are."""
    model = Layer(bits, signed, w_bits=w_bits).eval()
    model.conv.a_quantizer.step.data.fill_(0.25)
    values = torch.arange(-300, 301) * 0.125
    images = torch.cat([values, torch.randn(100) * 2**bits]).reshape(1, 1, 1, -1)
    export_onnx(
        model, tmp_path / 'net.onnx', (1, 1, images.shape[-1]), containers='auto'
    )
    with torch.no_grad():
        wanted = model.head(model.extract_feat(images))
    found = OnnxNetwork(tmp_path / 'net.onnx')(images)['outputs']
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    _, _, low, high = activation_levels(model.conv)
    assert set((found / 0.25).tolist()[0]) >= {low, high}


@pytest.mark.parametrize(('bits', 'w_bits'), [(3, 3), (4, 4), (4, 8), (8, 8)])
def test_zero_points_of_activations(bits, w_bits, tmp_path):
    """z = 5.2: the integer is a zero point, the rest is added and taken away."""
    model = Layer(bits, False, 'BatchQuantizer', w_bits).eval()
    model.conv.a_quantizer.set_statistics(torch.tensor([-1.0, 1.0]))
    model.conv.a_quantizer.shift.data.fill_(0.2)
    images = 2 * torch.randn(1, 1, 1, 201)
    export_onnx(model, tmp_path / 'net.onnx', (1, 1, 201), containers='auto')
    with torch.no_grad():
        wanted = model.head(model.extract_feat(images))
    found = OnnxNetwork(tmp_path / 'net.onnx')(images)['outputs']
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    graph = onnx.load(tmp_path / 'net.onnx').graph
    points = [t for t in graph.initializer if t.name == 'conv.input_zero_point']
    wanted = int(activation_levels(model.conv)[1])
    assert int(onnx.numpy_helper.to_array(points[0]).astype(int)) == wanted > 0


class Chain(nn.Module):
    """Convolutions behind each other, then a sum in float and two linear layers."""

    def __init__(self, bias):
        super().__init__()
        convs = [nn.Conv2d(n, 8, 3, padding=1, bias=bias) for n in (3, 8, 8)]
        self.convs = nn.Sequential(*(m for c in convs for m in (c, nn.ReLU())))
        self.fc = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def extract_feat(self, images):
        return self.fc(self.convs(images).mean((2, 3)))


CONVS, LINEAR = {'convs.0', 'convs.2'}, {'fc', 'head'}


@pytest.mark.parametrize(
    ('policy', 'containers', 'bias', 'integer'),
    [
        ('W8A8', 'auto', True, CONVS | LINEAR),
        ('W8A7', 'auto', True, LINEAR),
        ('W7A8', 'auto', False, CONVS | LINEAR),
        ('W6A4', 'auto', True, LINEAR),
        ('W6A4', 'auto', False, CONVS | LINEAR),
        ('W4A4', 'auto', False, set()),
        ('W8A8', '8bit', True, CONVS | LINEAR),
        ('W5A7', '8bit', True, CONVS | LINEAR),
        ('W6A4', '8bit', True, CONVS | LINEAR),
        ('W4A8', '8bit', False, CONVS | LINEAR),
        ('W2A2', '8bit', True, CONVS | LINEAR),
    ],
)
def test_what_onnx_runtime_computes_in_integers(
    policy, containers, bias, integer, tmp_path
):
    """And that it is the same, but for the biases of these convolutions.

    They are multiples of s_a s_w, at few bits of a part of that.
    """
    images = torch.randn(8, 3, 12, 12)
    model = quantize(Chain(bias), policy=policy, fixed={'*': None})
    model = settled_on(model, images)
    path = tmp_path / 'net.onnx'
    vnni = policy != 'W8A8' or not sums_are_cut()
    export_onnx(model, path, (3, 12, 12), containers=containers, vnni=vnni)
    found = integer_layers(path)
    assert found.keys() == integer
    assert set(found.values()) <= {'int8' if vnni else 'uint8'}
    layers = quantized_layers(model)
    for name in CONVS & integer if bias else ():
        layer = layers[name]
        w_bits, a_bits = layer.precision
        step = activation_levels(layer)[0] * weight_integers(layer)[1]
        filled = 7 if a_bits == 8 else 8
        step = step / 2 ** max(filled - w_bits, 0)
        layer.bias.data = (layer.bias / step).round() * step
    largest, mean = errors(model, OnnxNetwork(path), images)
    assert (largest < 1e-5).sum() >= 6
    assert mean.max() < 1e-2


class Product(nn.Module):
    """A linear layer between the largest inputs and weights, of one sign a row."""

    def __init__(self, w_bits, a_bits):
        super().__init__()
        weight = dict(w_bits=w_bits, w_quantizer=dict(type='LSQQuantizer'))
        activation = dict(a_bits=a_bits, a_quantizer=dict(type='LSQQuantizer'))
        self.fc = QuantLinear(32, 16, bias=False, **weight, **activation)
        self.fc.weight.data = torch.tensor([-2.0, 2.0] * 8)[:, None].expand(16, 32)
        for quantizer in (self.fc.w_quantizer, self.fc.a_quantizer):
            quantizer.set_sign(quantizer is self.fc.w_quantizer)
            quantizer.step.data.fill_(2**-8)
        self.head = nn.Identity()

    def extract_feat(self, images):
        return self.fc(images.flatten(1))


@pytest.mark.parametrize('vnni', [True, False])
@pytest.mark.parametrize('bits', [(8, 8), (7, 8), (8, 7)])
def test_the_largest_sums(bits, vnni, tmp_path):
    """Without VNNI those at W8A8 are exact only in a file that was made for it."""
    model, images = Product(*bits).eval(), torch.full((20, 2, 4, 4), 2.0)
    export_onnx(model, tmp_path / 'net.onnx', (2, 4, 4), vnni=vnni)
    unsigned = bits == (8, 8) and not vnni
    assert integer_layers(tmp_path / 'net.onnx') == {
        'fc': 'uint8' if unsigned else 'int8'
    }
    found = OnnxNetwork(tmp_path / 'net.onnx')(images)['outputs']
    ends = torch.tensor([-(2 ** (bits[0] - 1)), 2 ** (bits[0] - 1) - 1] * 8)
    wanted = (32 * (2 ** bits[1] - 1) * ends / 2**16).expand(20, 16)
    exact = bits != (8, 8) or not vnni or not sums_are_cut()
    assert torch.equal(found, wanted) == exact


@pytest.mark.parametrize('precision', ['W8A32', 'W4A32', 'W8A8'])
def test_a_float_input_of_a_product_is_not_rounded(precision, tmp_path):
    """As MatMulNBits would; fractional zero points make a float input, too."""
    images = torch.randn(8, 3, 12, 12)
    model = quantize(
        Chain(True),
        policy=Policy(dict(fc=Precision.parse(precision))),
        exclude=['convs.*', 'head'],
        a_quantizer=dict(type='BatchQuantizer'),
    )
    model = settled_on(model, images)
    if precision == 'W8A8':
        model.fc.a_quantizer.set_statistics(torch.tensor([-0.3, 2.0]))
        model.fc.a_quantizer.shift.data.fill_(0.2)
        assert activation_levels(model.fc)[1] % 1
    export_onnx(model, tmp_path / 'net.onnx', (3, 12, 12))
    largest, _ = errors(model, OnnxNetwork(tmp_path / 'net.onnx'), images)
    assert (largest < 1e-5).sum() >= 6


def test_a_head_over_levels_has_one_copy(tmp_path):
    images = torch.randn(2, 3, 64, 64)
    model = zoo('retinanet', ['W4A4'], images)
    export_onnx(model, tmp_path / 'net.onnx', (3, 64, 64), containers='auto')
    graph = onnx.load(tmp_path / 'net.onnx').graph
    head = 'bbox_head.cls_convs.0.conv'
    of_weight = [t for t in graph.initializer if t.name.startswith(f'{head}.weight')]
    assert sorted(t.name for t in of_weight) == [
        f'{head}.weight_int4',
        f'{head}.weight_scale',
    ]
    kinds = [n.op_type for n in graph.node if n.name.startswith(f'{head}.weight/')]
    assert kinds == ['DequantizeLinear']
    kinds = [n.op_type for n in graph.node if n.name.startswith(f'{head}.input/')]
    assert kinds.count('QuantizeLinear') == 5


def test_a_skipped_block_is_not_in_the_file(classifier, settled, tmp_path):
    config = classifier()
    policy = {n: m.precision for n, m in quantized_layers(settled(config)).items()}
    block = [n for n in policy if n.startswith('backbone.layer1.1.')]
    policy |= dict.fromkeys(block, SKIP)
    config.model.quant.policy = Policy(policy)
    model, images = settled(config), torch.randn(2, 3, 32, 32)
    report = export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32), containers='auto')
    assert set(policy) - set(report['layers']) == set(block)
    largest, _ = errors(model, OnnxNetwork(tmp_path / 'net.onnx'), images)
    assert largest.min() < 1e-4


def test_the_model_is_left_as_it_was(classifier, settled, outputs, tmp_path):
    model = settled(classifier()).train()
    before, state = (
        set(vars(model)),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    layers = {n: set(vars(m)) for n, m in quantized_layers(model).items()}
    export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32))
    assert model.training and set(vars(model)) == before
    assert layers == {n: set(vars(m)) for n, m in quantized_layers(model).items()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize('opset', [13, 17, 21, 23])
def test_opsets(opset, classifier, settled, tmp_path):
    model = settled(classifier(policy='W8A6'))
    report = export_onnx(
        model, tmp_path / 'net.onnx', (3, 32, 32), opset, containers='auto'
    )
    assert report['opset'] == onnx.load(tmp_path / 'net.onnx').opset_import[0].version
    largest, _ = errors(
        model, OnnxNetwork(tmp_path / 'net.onnx'), torch.randn(4, 3, 32, 32)
    )
    assert (largest < 1e-4).sum() >= 2


def refused(model, tmp_path, shape=(3, 32, 32), **kwargs):
    with pytest.raises(ValueError) as error:
        export_onnx(model, tmp_path / 'net.onnx', shape, **kwargs)
    assert not list(tmp_path.iterdir())
    return str(error.value)


def test_opsets_that_lack_a_width(classifier, settled, tmp_path):
    model = settled(classifier())
    said = refused(model, tmp_path, opset=20, containers='auto')
    assert '20' in said and '21 or later' in said
    assert 'backbone.layer1.0.conv1 (W3A4)' in said and 'backbone.conv1' not in said
    assert '13 to 25' in refused(model, tmp_path, opset=12)
    said = refused(model, tmp_path, containers='4bit')
    assert "containers: found '4bit'; accepted are auto, 8bit" in said
    assert export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32), 20)


def test_what_cannot_be_exported_is_named(classifier, settled, tmp_path, monkeypatch):
    model = settled(classifier())
    assert 'input_shape: found (32, 32)' in refused(model, tmp_path, (32, 32))
    bad = model.backbone.layer2[0].relu
    monkeypatch.setattr(bad, 'forward', lambda x: torch.fft.fft(x).real)
    said = refused(model, tmp_path)
    assert 'backbone.layer2.0.relu' in said and 'fft' in said

    def fails(x):
        self = bad
        raise RuntimeError(f'no {type(self).__name__} today')

    monkeypatch.setattr(bad, 'forward', fails)
    said = refused(model, tmp_path)
    assert 'failed in backbone.layer2.0.relu' in said and 'no ReLU today' in said
    monkeypatch.undo()
    model.backbone.conv1.a_quantizer.signed.fill_(-1)
    model.backbone.conv1.a_quantizer.sync_host()
    said = refused(model, tmp_path)
    assert said.startswith('not calibrated: backbone.conv1: it has seen no input')
    config = classifier(candidates=['W2A2', 'W4A4'])
    del config.model.quant.policy
    assert 'apply_policy' in refused(settled(config), tmp_path)
    assert 'no quantized layer' in refused(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    assert 'Sequential cannot be cut' in refused(nn.Sequential(model), tmp_path)


def test_layers_that_saw_only_zeros_are_named_once(classifier, settled, tmp_path):
    """As in a net of random weights whose signal fades, or behind a dead layer."""
    model = settled(classifier())
    dead = [n for n, m in quantized_layers(model).items() if 'layer2' in n]
    for name in dead:
        model.get_submodule(name).a_quantizer.signed.fill_(-1)
        model.get_submodule(name).a_quantizer.sync_host()
    said = refused(model, tmp_path)
    assert f'not calibrated: {", ".join(dead[:3])} and {len(dead) - 3} more' in said
    assert 'only zeros' in said and 'quant.exclude' in said


def test_without_the_extra(classifier, settled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    said = refused(settled(classifier()), tmp_path)
    assert 'package onnx ' in said and 'pip install "mmmpq[deploy]"' in said
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ValueError, match=r'package onnxruntime .*deploy'):
        OnnxNetwork(tmp_path / 'net.onnx')
