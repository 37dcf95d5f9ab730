"""What the forward of a model does with its layers decides which are quantized."""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

from mmmpq.costs import profile
from mmmpq.costs.flow import flow_of
from mmmpq.layers import QuantLayer, float_twin, quantized_layers
from mmmpq.models import quantize
from mmmpq.search import Problem, SearchSpace

CANDIDATES = ['W2A2', 'W4A4', 'W8A8']


class Net(nn.Module):
    """One layer of each kind that its forward may have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.plain = nn.Conv2d(4, 4, 1)
        self.by_parent = nn.Conv2d(4, 4, 1)
        self.by_both = nn.Conv2d(4, 4, 1)
        self.idle = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.plain(self.stem(x).relu())
        x = F.conv2d(x, self.by_parent.weight, self.by_parent.bias)
        x = self.by_both(x) / self.by_both.weight.norm()
        return self.fc(x.mean((2, 3)))


def test_what_is_passed_by_stays_float(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmmpq.models.reached.print_log', lambda text, **_: said.append(text)
    )
    model = quantize(Net(), candidates=CANDIDATES)
    assert list(quantized_layers(model)) == ['stem', 'plain', 'fc']
    assert model.quantized_with['float_layers'] == ['by_parent', 'by_both', 'idle']
    assert said == [
        'these layers stay float, as something else reads their weight: '
        'by_parent, by_both',
        'these layers stay float, as a forward does not call them: idle',
    ]


def test_a_policy_of_such_a_net_fits_it_again():
    policy = SearchSpace(quantize(Net(), candidates=CANDIDATES)).policy([1, 0, 0])
    model = quantize(Net(), policy=policy)
    assert {n: m.precision for n, m in quantized_layers(model).items()} == policy.layers


def test_a_net_that_does_not_run_is_told_by_names(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmmpq.models.reached.print_log', lambda text, **_: said.append(text)
    )
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3))
    assert len(quantized_layers(quantize(net, policy='W4A4'))) == 2
    assert said[0].startswith('quant: which layers are called, and which are the last,')


def test_what_no_forward_calls_is_not_searched():
    model = quantize(Net(), candidates=CANDIDATES)
    model.forward = lambda x: model.fc(model.stem(x).mean((2, 3)))
    with pytest.raises(ValueError, match=r"calls plain, .*exclude=\['plain'\] leaves"):
        Problem(model, [dict(type='BOPs', limit='W4A4', input_shape=(3, 16, 16))])


def names(model):
    return [n for n, m in model.named_modules() if float_twin(m)]


def small(name, **backbone):
    init_default_scope('mmpretrain')
    cfg = get_config(name).model
    cfg.backbone.update(backbone, init_cfg=None)
    cfg.train_cfg = None
    return cfg


def test_beit():
    """The attention of BEiT hands the weight of ``qkv`` to ``F.linear`` by itself."""
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    name = 'mmpretrain::beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py'
    cfg = small(name, arch=arch, img_size=32)
    cfg.head.update(in_channels=32, num_classes=10)
    cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=dict(policy='W2A2'))
    model = MODELS.build(cfg)
    calls = {p.name: p.calls for p in profile(model, (3, 32, 32))}
    layers = quantized_layers(model)
    assert len(layers) == 10
    assert all(calls[name] == 1 for name in layers)
    assert isinstance(model.backbone.layers[0].attn.qkv, QuantLayer)
    assert isinstance(model.backbone.layers[0].attn.proj, QuantLayer)


class Head(BaseModel):
    """A prediction layer of no known name, one that a loss alone would read, and a
    residual block in front of them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.one = nn.Conv2d(4, 4, 1)
        self.two = nn.Conv2d(4, 4, 1)
        self.boxes = nn.ModuleList(nn.Conv2d(4, 3, 1) for _ in range(2))
        self.dropped = nn.Conv2d(4, 7, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.stem(inputs)
        x += self.two(self.one(x).relu())
        self.dropped(x).sigmoid()
        return torch.cat([boxes(x).exp() for boxes in self.boxes])


def test_the_last_layers_are_those_of_the_forward():
    flow = flow_of(Head())
    assert flow.last == {'boxes.0', 'boxes.1', 'dropped'}
    model = quantize(Head(), policy='W2A2')
    low = [n for n, m in quantized_layers(model).items() if m.precision == (2, 2)]
    assert low == ['one', 'two']


def test_a_detector_without_known_names():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py').model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg)
    heads = {n for n in names(model) if n.startswith('bbox_head')}
    assert len(heads) == 24  # separable convolutions
    assert flow_of(model).last == heads
