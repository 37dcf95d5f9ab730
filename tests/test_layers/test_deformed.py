"""Deformable convolutions: weights and inputs are quantized, offsets are not."""

import copy

import pytest
import torch
from mmcv import ops
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.costs import profile
from mmmpq.export.integer_check import checking
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import calibrating, quantized_layers
from mmmpq.models import quantize
from mmmpq.search import Problem, SearchSpace

SHAPE = 3, 8, 8
LAYERS = 'one', 'two', 'three', 'four'


class Deformed(nn.Module):
    """All four of mmcv's classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = ops.DeformConv2dPack(4, 4, 3, padding=1)
        self.two = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1, stride=2)
        self.where = nn.Conv2d(6, 18, 3, padding=1)
        self.mask = nn.Conv2d(6, 9, 3, padding=1)
        self.three = ops.DeformConv2d(6, 6, 3, padding=1)
        self.four = ops.ModulatedDeformConv2d(6, 5, 3, padding=1)
        for layer in (self.one, self.two):
            nn.init.normal_(layer.conv_offset.weight, std=0.2)

    def forward(self, x):
        x = self.two(self.one(self.stem(x)).relu()).relu()
        x = self.three(x, self.where(x)).relu()
        return (self.four(x, self.where(x), self.mask(x).sigmoid()).mean((2, 3)),)


def config(**quant):
    MODELS.register_module(module=Deformed, force=True)
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=3, in_channels=5, topk=(1,))
    model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier', quant=quant)
    model.update(backbone=dict(type='Deformed'), head=head)
    return Config(dict(default_scope='mmpretrain', model=model))


def built(**quant):
    torch.manual_seed(0)
    cfg = config(**quant)
    model, images = MODELS.build(cfg.model), torch.randn(2, *SHAPE)
    with torch.no_grad(), calibrating(model):
        model(images)
    return cfg, model, images


def test_in_float_they_are_what_they_were():
    torch.manual_seed(0)
    net, x = Deformed(), torch.randn(2, *SHAPE)
    model = quantize(copy.deepcopy(net), policy='W32A32', fixed={'*': None})
    assert set(LAYERS) <= set(quantized_layers(model))
    assert torch.equal(model(x)[0], net(x)[0])
    assert set(net.state_dict()) <= set(model.state_dict())


def test_they_compute_with_quantized_values_at_offsets_of_float_ones():
    _, model, images = built(policy='W3A3')
    seen = {}
    for name in LAYERS:
        model.backbone.get_submodule(name).register_forward_hook(
            lambda layer, args, out, name=name: seen.update({name: (layer, args, out)})
        )
    model(images)
    for name, (layer, (x, *where), out) in seen.items():
        if name in ('one', 'two'):
            where = [layer.conv_offset(x)]
            if name == 'two':
                across, down, mask = where[0].chunk(3, 1)
                where = [torch.cat([across, down], 1), mask.sigmoid()]
        plain = ops.deform_conv2d if len(where) == 1 else ops.modulated_deform_conv2d
        weights = [layer.w_quantizer(layer.weight, 3)]
        weights += [layer.bias] if len(where) == 2 else []
        wanted = plain(
            *(layer.a_quantizer(x, 3), *where, *weights),
            *(layer.stride, layer.padding, layer.dilation),
        )
        torch.testing.assert_close(out, wanted)
    assert 'conv_offset' not in vars(model.backbone.two)


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_they_are_searched_and_priced(mixing):
    quant = dict(candidates=['W2A2', 'W4A4', 'W8A8'], groups='layer', mixing=mixing)
    _, model, images = built(**quant)
    space = SearchSpace(model)
    assert {f'backbone.{n}' for n in LAYERS} <= {g.name for g in space.groups}
    if mixing == 'sampled':
        space.draw(torch.Generator().manual_seed(0))
    for logits in space.logits:
        logits.requires_grad_()
    model(images)[0].square().sum().backward()
    assert all(logits.grad.abs().sum() > 0 for logits in space.logits)
    macs = {p.name: p.macs for p in profile(model, SHAPE)}
    assert [macs[f'backbone.{n}'] for n in LAYERS] == [
        *(64 * 4 * 4 * 9, 16 * 6 * 4 * 9, 16 * 6 * 6 * 9, 16 * 5 * 6 * 9)
    ]
    problem = Problem(model, [dict(type='BOPs', limit='W4A4', input_shape=SHAPE)])
    assert 'backbone.four' in problem.policy(problem.most_probable()).layers


def test_files(tmp_path):
    cfg, model, images = built(policy='W4A4')
    with torch.no_grad(), checking(model.eval()) as checks:
        wanted = model(images)[0]
    assert not {f'backbone.{n}' for n in LAYERS} & set(checks)
    path = save_packed(model, tmp_path / 'net.safetensors', cfg)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images)[0], wanted)
    onnx = pytest.importorskip('onnx')
    export_onnx(model, tmp_path / 'net.onnx', SHAPE)
    graph = onnx.load(tmp_path / 'net.onnx').graph
    makers = {out: node.op_type for node in graph.node for out in node.output}
    found = [n for n in graph.node if n.domain == 'mmcv']  # mmcv's own operators
    assert [n.op_type for n in found] == [
        *('MMCVDeformConv2d', 'MMCVModulatedDeformConv2d') * 2
    ]
    for node in found:
        weight = node.input[2 if node.op_type == 'MMCVDeformConv2d' else 3]
        assert makers[node.input[0]] == makers[weight] == 'DequantizeLinear'
        assert makers[node.input[1]] != 'DequantizeLinear'
