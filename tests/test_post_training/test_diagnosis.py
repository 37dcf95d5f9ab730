"""Planted faults are named first, on a classifier and on a detector."""

import copy
import json
import re
from html import escape

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import quantized_layers
from mmmpq.models import quantize
from mmmpq.models.task_loss import raw_outputs
from mmmpq.policy import Precision
from mmmpq.post_training.diagnosis import Finding, diagnose
from mmmpq.post_training.pipeline import calibrate_ranges
from mmmpq.visualization.diagnosis import diagnosis_page
from mmmpq.visualization.noise import noise
from mmmpq.visualization.theme import LIGHT, draw

NETS = {'resnet': 'mmpretrain', 'retinanet': 'mmdet'}
FEW = dict(in_channels=[8, 16, 32, 64], out_channels=16)


def build(name):
    if name == 'resnet':
        config = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
        few = {'backbone.stem_channels': 8, 'head.in_channels': 64}
        few |= {'head.num_classes': 10, 'head.topk': (1,)}
    else:
        config = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        few = {f'neck.{key}': value for key, value in FEW.items()}
        few |= {'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16}
        few |= {'bbox_head.num_classes': 10, 'bbox_head.stacked_convs': 1}
    few |= {'backbone.depth': 18, 'backbone.base_channels': 8}
    config.merge_from_dict({f'model.{key}': value for key, value in few.items()})
    config.model.backbone.init_cfg = None
    if name == 'resnet':
        config.model.data_preprocessor = config.data_preprocessor
    init_default_scope(NETS[name])
    return MODELS.build(config.model)


@pytest.fixture(scope='module', params=NETS)
def sound(request):
    """A net of 8 bits whose BatchNorms fit its images, and a batch of these."""
    pytest.importorskip(NETS[request.param])
    torch.manual_seed(0)
    model = build(request.param)
    batch = dict(inputs=[torch.rand(3, 64, 64) * 255 for _ in range(4)])
    for module in model.train().modules():
        if isinstance(module, _BatchNorm):
            module.train().momentum = 1.0  # detectors keep them from it
    with torch.no_grad():
        model.backbone(model.data_preprocessor(batch, False)['inputs'])
    quant = dict(type='LinearQuantizer', per_channel=True)
    quantize(model, policy='W8A8', w_quantizer=quant)
    model.eval()
    calibrate_ranges(model, [batch])
    return model, batch


@pytest.fixture
def net(sound):
    return copy.deepcopy(sound)


LAYER, NORM = 'backbone.layer2.0.conv2', 'backbone.layer2.0.bn2'


def two_bits(layer):
    layer._init_quant(2, 8)
    layer.w_quantizer.calibrate(layer.weight)


def small_range(layer):
    layer.a_quantizer.range.data *= 0.1


def large_range(layer):
    layer.a_quantizer.range.data *= 100


def swapped_sign(layer):
    layer.a_quantizer.set_sign(False)


FAULTS = {
    two_bits: (LAYER, 'weights'),
    small_range: (LAYER, 'beyond its range'),
    large_range: (LAYER, 'range is'),
    swapped_sign: ('backbone.conv1', 'range is unsigned'),
}


@pytest.mark.parametrize('plant', FAULTS)
def test_a_fault_is_named_first(net, plant):
    model, batch = net
    name, text = FAULTS[plant]
    layer = quantized_layers(model)[name]
    plant(layer)
    if not layer.a_quantizer.calibrated:
        calibrate_ranges(model, [batch])
    first = diagnose(model, batch)[0]
    assert first.name == name, first
    assert any(text in fault for fault in first.faults), first


def test_a_stale_batchnorm_is_named_first(net):
    model, batch = net
    norm = model.get_submodule(NORM)
    norm.running_mean += 2 * norm.running_var.sqrt()
    first = diagnose(model, batch)[0]
    assert first.name == NORM and 'statistics' in first.faults[0]


def test_a_sound_net_has_no_faults_and_stays_as_it_is(net, tmp_path):
    model, batch = net
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outputs = raw_outputs(model, batch)
    found = diagnose(model, batch)
    assert not [f for f in found if f.faults]
    assert all(f.alone > 25 and f.cumulated > 10 for f in found)
    assert {f.precision for f in found} == {str(Precision(8, 8))}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert str(raw_outputs(model, batch)) == str(outputs)
    assert json.loads(json.dumps([f.to_dict() for f in found]))[0]['harm'] >= 0
    assert draw(noise, LIGHT, found).startswith(b'\x89PNG')


def page_of(findings):
    pictures = dict(light=b'\x89PNG' + b'\0' * 20)
    return diagnosis_page('Tiny<Net>', '16 images', findings, pictures)


def test_the_page_begins_with_a_planted_fault(net):
    model, batch = net
    small_range(quantized_layers(model)[LAYER])
    found = diagnose(model, batch)
    page = page_of(found)
    verdict, table = page.split('<section id="verdict">')[1].split('<table>')
    assert f'The worst is <strong>{LAYER}</strong>' in verdict
    assert escape(found[0].faults[0]) in verdict and escape(found[0].faults[0]) in table
    assert table.count('<tr>') == 1 + len(found)
    assert not re.search(r'<script|<link|(src|href|srcset)="(?!data:)', page)


def test_the_page_of_a_sound_net_and_of_odd_names(net):
    assert 'no fault is known' in page_of(diagnose(*net))
    page = page_of([Finding('a.<b>&', precision='W2A8', harm=3e-7, faults=['x < y'])])
    assert 'Tiny&lt;Net&gt;' in page and 'x &lt; y' in page
    assert '<td>a.&lt;b&gt;&amp;</td><td>W2A8</td><td>&lt; 0.0001</td>' in page


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.both = True
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.one(self.two(x)) if self.both else self.one(x)


def test_layers_that_never_ran_come_last():
    net = quantize(Net(), policy='W8A8', fixed={'*': None})
    net.eval().both = False
    calibrate_ranges(net, [torch.randn(8, 4)])
    last = diagnose(net, torch.randn(8, 4))[-1]
    assert last.name == 'two' and 'no forward' in last.faults[0]


def test_a_float_net_is_refused():
    with pytest.raises(ValueError, match='no quantized layer'):
        diagnose(torch.nn.Linear(2, 2), torch.randn(1, 2))
