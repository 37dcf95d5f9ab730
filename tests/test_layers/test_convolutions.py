"""Convolutions beside Conv2d: transposed, of one and of three dimensions."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

from mmmpq.baselines.probe import weight_errors
from mmmpq.costs import profile
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.integer_check import checking
from mmmpq.export.onnx.graph import export_onnx, export_qonnx
from mmmpq.export.onnx.model import OnnxNetwork
from mmmpq.export.packed import load_from_packed, load_packed, save_packed
from mmmpq.layers import calibrating, float_twin, quantized_layers
from mmmpq.models import quantize
from mmmpq.quantizers import LinearQuantizer
from mmmpq.search import Problem, SearchSpace

SHAPE = 3, 16, 16
LAYERS = 'backbone.up', 'backbone.line', 'backbone.cube'
MIXED = dict(candidates=['W2A2', 'W4A4', 'W8A8'], groups='layer')
CHANNELS = dict(type='LinearQuantizer', per_channel=True)


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, bias=False)
        self.up_norm = nn.BatchNorm2d(6)
        self.line = nn.Conv1d(6, 4, 3, padding=1, groups=2)
        self.line_norm = nn.BatchNorm1d(4)
        self.cube = nn.Conv3d(4, 5, (3, 1, 3), padding=(1, 0, 0))
        self.cube_norm = nn.BatchNorm3d(5)

    def forward(self, x):
        x = self.up_norm(self.up(self.stem(x).relu())).relu()
        x = self.line_norm(self.line(x.flatten(2))).relu()
        x = self.cube_norm(self.cube(x.reshape(-1, 4, 4, 4, 4)))
        return (x.flatten(2).mean(2),)


def config(**quant):
    MODELS.register_module(module=Kinds, force=True)
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=3, in_channels=5, topk=(1,))
    model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier', quant=quant)
    model.update(backbone=dict(type='Kinds'), head=head)
    return Config(dict(default_scope='mmpretrain', model=model))


@torch.no_grad()
def built(**quant):
    torch.manual_seed(0)
    cfg = config(**quant)
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.normal_()
            module.bias.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(4, *SHAPE)
    with calibrating(model.eval()):
        model(images)
    return cfg, model, images


def test_in_float_they_are_what_they_were():
    torch.manual_seed(0)
    net, x = Kinds().eval(), torch.randn(2, *SHAPE)
    model = quantize(copy.deepcopy(net), policy='W32A32', fixed={'*': None})
    assert list(quantized_layers(model)) == ['stem', 'up', 'line', 'cube']
    assert torch.equal(model(x)[0], net(x)[0])
    assert set(net.state_dict()) <= set(model.state_dict())


@pytest.mark.parametrize(
    ('mixing', 'own'),
    [
        *(('composite', False), ('outputs', False), ('outputs', True)),
        *(('sampled', False), ('sampled', True)),
    ],
)
def test_they_are_searched(mixing, own):
    _, model, images = built(**MIXED, mixing=mixing, own_weights=own)
    space = SearchSpace(model)
    assert set(LAYERS) <= {g.name for g in space.groups}
    space.draw(torch.Generator().manual_seed(0)) if mixing == 'sampled' else None
    for logits in space.logits:
        logits.requires_grad_()
    model(images)[0].square().sum().backward()
    assert all(logits.grad.abs().sum() > 0 for logits in space.logits)
    model.get_submodule(LAYERS[0]).fix((4, 4))
    model(images)


def test_they_are_priced():
    _, model, _ = built(**MIXED)
    found = {p.name: (p.macs, p.weights) for p in profile(model, SHAPE)}
    assert [found[n] for n in LAYERS] == [
        (16 * 8 * 6 * 9, 8 * 6 * 9),  # each input meets each weight of its channel
        (64 * 4 * 3 * 3, 4 * 3 * 3),
        (4 * 4 * 2 * 5 * 4 * 9, 5 * 4 * 9),
    ]
    problem = Problem(model, [dict(type='BOPs', limit='W4A4', input_shape=SHAPE)])
    assert set(LAYERS) <= set(problem.policy(problem.most_probable()).layers)


@pytest.mark.parametrize('quantizer', [dict(type='LinearQuantizer'), CHANNELS])
def test_transposed_weights_have_a_step_for_each_output_channel(quantizer):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1))
    with torch.no_grad():
        net[0].weight *= torch.logspace(-1, 1, 6)[:, None, None]
    quant = dict(fixed={'0': 'W4A4'}, quantizer=quantizer)
    model = quantize(copy.deepcopy(net), policy='W4A4', **quant)
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad(), calibrating(model):
        model(x)
    kwargs = {k: v for k, v in quantizer.items() if k != 'type'}
    wanted = LinearQuantizer((4,), 'weight', channels=6, **kwargs)
    rows = net[0].weight.detach().transpose(0, 1).contiguous()
    wanted.calibrate(rows)
    quantized = wanted(rows, 4).transpose(0, 1)
    a = model[0].a_quantizer(x, 4)
    out = F.conv_transpose2d(a, quantized, net[0].bias, 2, 1, 1)
    torch.testing.assert_close(model[0](x), out)
    scales = model[0].w_quantizer.scales(rows, (4,))[0]
    assert scales.numel() == (6 if 'per_channel' in quantizer else 1)
    # gradients, also of what the layer computes anew in its backward pass
    weight = net[0].weight.detach().requires_grad_()
    again = wanted(weight.transpose(0, 1).contiguous(), 4).transpose(0, 1)
    F.conv_transpose2d(
        a.detach(), again, net[0].bias, 2, 1, 1
    ).square().sum().backward()
    model[0](x).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, weight.grad, rtol=1e-4, atol=1e-4)


def test_errors_of_transposed_weights_meet_their_own_slopes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 3))
    quant = dict(candidates=['W2A2', 'W4A4'], quantizer=CHANNELS, fixed={'0': None})
    layer = quantize(net, **quant)[0]
    layer.calibrate([torch.randn(99)])
    slope = torch.randn(4, 4, 3, 3)
    for found, bits in zip(weight_errors(layer, slope), (2, 4), strict=True):
        rows = layer.w_quantizer(layer.weight.transpose(0, 1).contiguous(), bits)
        error = (rows.transpose(0, 1) - layer.weight) * slope
        torch.testing.assert_close(found, error.double().square().sum().item())


def test_an_output_size_is_kept():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    model = quantize(nn.Sequential(copy.deepcopy(layer)), policy='W32A32',
                     fixed={'*': None})  # fmt: skip
    x = torch.randn(1, 2, 5, 5)
    for size in (None, (9, 9), (10, 10), (9, 10)):
        assert torch.equal(model[0](x, output_size=size), layer(x, output_size=size))
    assert model[0].output_padding == (0, 0)


def test_of_several_groups_it_stays_float():
    assert float_twin(nn.ConvTranspose2d(4, 4, 3, groups=2)) is None
    assert float_twin(nn.ConvTranspose1d(4, 4, 3)) is None


def on_grid(layer):
    """The quantized weight as the parameter holds it, (C_in, C_out, ...)."""
    bits = layer.precision.w_bits
    return layer.w_quantizer(layer.weight.transpose(0, 1), bits).transpose(0, 1)


@pytest.mark.parametrize('quantizer', [dict(type='LSQPlusQuantizer'), CHANNELS])
@pytest.mark.parametrize('policy', ['W4A4', 'W8A8', 'W32A32'])
@pytest.mark.parametrize('folded', [False, True])
def test_files(policy, quantizer, folded, tmp_path):
    cfg, model, images = built(policy=policy, quantizer=quantizer)
    with torch.no_grad():
        if folded:
            wanted = model(images)
            report = fold_batchnorm(model, SHAPE)
            assert set(report.folded.values()) == set(LAYERS)
            torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-4)
        with checking(model) as checks:
            wanted = model(images)
    if policy != 'W32A32':
        assert set(LAYERS) <= set(checks)
        assert all(c.calls and c.share < 1e-5 for c in checks.values())
    path = save_packed(model, tmp_path / 'net.safetensors', cfg)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images)[0], wanted[0])
        state = load_from_packed(path)['state_dict']
        assert torch.equal(state['backbone.up.weight'], on_grid(model.backbone.up))
        wanted = model.head(model.extract_feat(images))
    export_onnx(model, tmp_path / 'net.onnx', SHAPE)
    found = OnnxNetwork(tmp_path / 'net.onnx')(images)['outputs']
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('quantizer', [dict(type='LinearQuantizer'), CHANNELS])
def test_the_graph_has_the_weight_right_behind_its_integers(quantizer, tmp_path):
    onnx = pytest.importorskip('onnx')
    _, model, _ = built(policy='W4A4', quantizer=quantizer)
    export_onnx(model, tmp_path / 'net.onnx', SHAPE)
    export_qonnx(model, tmp_path / 'net.qonnx', SHAPE)
    for name, kind in (('net.onnx', 'DequantizeLinear'), ('net.qonnx', 'Quant')):
        graph = onnx.load(tmp_path / name).graph
        makers = {out: node for node in graph.node for out in node.output}
        (up,) = [n for n in graph.node if n.op_type == 'ConvTranspose']
        made = makers[up.input[1]]
        assert made.op_type == kind
        (stored,) = [t for t in graph.initializer if t.name == made.input[0]]
        assert list(stored.dims) == [8, 6, 3, 3]
        axis = [a.i for a in made.attribute if a.name == 'axis']
        assert axis == ([1] if kind != 'Quant' and 'per_channel' in quantizer else [])
