"""Layers whose weight their parent multiplies with by itself."""

import copy

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

from mmmpq.costs import profile
from mmmpq.export.integer_check import checking
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import QuantLayer, calibrating, quantized_layers
from mmmpq.models import quantize
from mmmpq.search import Problem, SearchSpace

FLOAT = dict(policy='W32A32', fixed={'*': None})


class Parent(nn.Module):
    """Children that are called, handed to ``F.linear`` or read in another way."""

    def __init__(self):
        super().__init__()
        self.called = nn.Linear(4, 4)
        self.own = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.bare = nn.Linear(4, 4, bias=False)
        self.both = nn.Linear(4, 4)
        self.product = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = self.called(x)
        x = F.linear(x, self.own.weight, self.own.bias)
        x = F.linear(bias=self.shift.exp(), weight=self.other.weight, input=x)
        x = F.linear(x, self.bare.weight)
        x = self.both(F.linear(x, self.both.weight))
        return x @ self.product.weight.t()


def test_a_handed_weight_is_a_call_with_the_handed_bias():
    torch.manual_seed(0)
    net, x = Parent(), torch.randn(3, 4)
    wanted = net(x)
    model = quantize(nn.Sequential(copy.deepcopy(net)), **FLOAT)
    calls = []
    for name, layer in quantized_layers(model).items():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    assert torch.equal(model(x), wanted)
    names = ['called', 'own', 'other', 'bare', 'both', 'both']
    assert calls == [f'0.{n}' for n in names]
    assert isinstance(model[0], Parent) and type(model[0]).__name__ == 'Parent'
    assert type(model[0].product) is nn.Linear
    model = quantize(nn.Sequential(net), policy='W4A4')
    with torch.no_grad(), calibrating(model):
        model(x)
    other, y = model[0].other, torch.randn(3, 4)
    seen = []
    other.register_forward_hook(lambda layer, args, out: seen.append((args[0], out)))
    model(x).sum().backward()
    ((y, out),) = seen
    weight = other.w_quantizer(other.weight, 4)
    quantized = other.a_quantizer(y, 4)
    torch.testing.assert_close(out, F.linear(quantized, weight, model[0].shift.exp()))
    assert model[0].shift.grad.abs().sum() > 0 and other.bias.grad is None


def test_a_layer_that_is_called_computes_once():
    """Also where its own forward multiplies with the weight as it is."""
    model = quantize(nn.Sequential(Parent()), exclude=['0.called'], policy='W32A8')
    calls = []
    model[0].called.register_forward_hook(lambda *_: calls.append('called'))
    model[0].both.register_forward_hook(lambda *_: calls.append('both'))
    model(torch.randn(2, 4))
    assert calls == ['called', 'both', 'both']


@pytest.mark.parametrize('name', ['swin_t', 'swin_v2_t'])
def test_swin_of_torchvision(name):
    net = getattr(torchvision.models, name)(num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = net(x)
        model = quantize(net, **FLOAT)
        assert torch.equal(model(x), wanted)
    assert not model.quantized_with['float_layers']


# --- attention of MMPretrain ----------------------------------------------------------

SIDE, E, TOKENS = 32, 16, 16
ARCH = dict(embed_dims=E, num_layers=2, num_heads=2, feedforward_channels=32)
PATCHES = dict(arch=ARCH, img_size=SIDE, patch_size=8, out_type='avg_featmap')
BACKBONES = dict(
    beit=dict(type='BEiTViT', **PATCHES),
    deit=dict(type='VisionTransformer', **PATCHES),
    swin_v2=dict(
        type='SwinTransformerV2',
        arch=dict(
            embed_dims=E,
            depths=[2, 1],
            num_heads=[1, 2],
            extra_norm_every_n_blocks=0,
        ),
        img_size=SIDE,
        window_size=[4, 4],
        out_indices=(1,),
    ),
)


def config(name, **quant):
    init_default_scope('mmpretrain')
    width = 2 * E if name == 'swin_v2' else E
    head = dict(type='LinearClsHead', num_classes=3, in_channels=width, topk=(1,))
    neck = dict(type='GlobalAveragePooling') if name == 'swin_v2' else None
    model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier', quant=quant)
    model.update(backbone=copy.deepcopy(BACKBONES[name]), neck=neck, head=head)
    return Config(dict(default_scope='mmpretrain', model=model))


def built(name, images, **quant):
    torch.manual_seed(0)
    cfg = config(name, **quant)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim():
                param.add_(torch.randn_like(param), alpha=0.05)
        with calibrating(model):
            model(images)
    return cfg, model.eval()


def qkv(model):
    return [n for n in quantized_layers(model) if n.endswith('qkv')]


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, SIDE, SIDE)


@pytest.mark.parametrize('name', BACKBONES)
def test_attention_is_searched_and_priced(name, images):
    quant = dict(candidates=['W2A2', 'W4A4', 'W8A8'], groups='layer')
    _, model = built(name, images, **quant)
    assert len(qkv(model)) == (3 if name == 'swin_v2' else 2)
    assert not model.quantized_with['float_layers']
    space = SearchSpace(model.train())
    assert set(qkv(model)) <= {g.name for g in space.groups}
    for logits in space.logits:
        logits.requires_grad_()
    model(images)[0].square().sum().backward()
    assert all(logits.grad.abs().sum() > 0 for logits in space.logits)
    layers = {p.name: p for p in profile(model, (3, SIDE, SIDE))}
    first = layers[qkv(model)[0]]
    tokens = 64 if name == 'swin_v2' else TOKENS + 1
    assert (first.macs, first.weights) == (tokens * 3 * E * E, 3 * E * E)
    limit = dict(type='BOPs', limit='W4A4', input_shape=(3, SIDE, SIDE))
    problem = Problem(model, [limit])
    assert set(qkv(model)) <= set(problem.policy(problem.most_probable()).layers)


@pytest.mark.parametrize('name', BACKBONES)
def test_attention_in_files(name, images, tmp_path):
    cfg, model = built(name, images, policy='W8A8')
    with torch.no_grad(), checking(model) as checks:
        wanted = model(images)
    assert all(checks[n].calls and checks[n].share < 1e-5 for n in qkv(model))
    path = save_packed(model, tmp_path / 'net.safetensors', cfg)
    again = load_packed(path)
    assert qkv(again) == qkv(model)
    assert isinstance(again.get_submodule(qkv(model)[0]), QuantLayer)
    with torch.no_grad():
        assert torch.equal(again(images)[0], wanted[0])
        wanted = model.head(model.extract_feat(images))
    export_onnx(model, tmp_path / 'net.onnx', (3, SIDE, SIDE))
    found = OnnxNetwork(tmp_path / 'net.onnx')(images)['outputs']
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
