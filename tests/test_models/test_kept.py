"""Quantized layers stay, and compute, whatever is switched on."""

import copy
import io

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.layers import quantized_layers
from mmmpq.models import quantize

SEARCH = dict(candidates=['W2A2', 'W4A4'])


def net(efficient):
    torch.manual_seed(0)
    block = ConvModule(
        6, 6, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=efficient
    )
    model = nn.Sequential(nn.Conv2d(3, 6, 3), block, nn.Conv2d(6, 6, 3))
    block.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize('quant', [dict(policy='W2A2'), SEARCH])
def test_a_conv_module_with_efficient_evaluation_is_quantized(quant):
    x = torch.randn(2, 3, 9, 9)
    outputs = []
    for efficient in (False, True):
        model = quantize(net(efficient), **quant)
        model(x)
        outputs.append(model.eval()(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize('quant', [dict(policy='W2A2'), SEARCH])
def test_the_switch_of_the_runner(quant):
    """``efficient_conv_bn_eval=['backbone']`` in a config."""
    model = nn.ModuleDict(dict(backbone=net(False), neck=net(False)))
    quantize(model['backbone'], **quant)
    x = torch.randn(2, 3, 9, 9)
    model['backbone'](x)
    model.eval()
    before = model['backbone'](x), model['neck'](x)
    turn_on_efficient_conv_bn_eval(model, ['backbone', 'neck'])
    assert torch.equal(model['backbone'](x), before[0])
    assert 'forward' in vars(model['neck'])  # what is float has it
    torch.testing.assert_close(model['neck'](x), before[1])


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='RepVGG', arch='A0', out_indices=(3,)),
        dict(type='MobileOne', arch='s0', out_indices=(3,)),
        dict(type='LeViT', arch='128s'),
    ],
)
def test_re_parameterisation_is_refused(backbone):
    init_default_scope('mmpretrain')
    model = quantize(MODELS.build(backbone), policy='W4A4')
    count = len(quantized_layers(model))
    with pytest.raises(RuntimeError, match=r'\(\): it would replace quantized layers'):
        model.switch_to_deploy()
    assert len(quantized_layers(model)) == count
    again = torch.load(_saved(copy.deepcopy(model)), weights_only=False)
    with pytest.raises(RuntimeError, match='switch_to_deploy'):
        again.switch_to_deploy()


def test_re_parameterised_first():
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(type='MobileOne', arch='s0', out_indices=(3,)))
    model.switch_to_deploy()
    layers = quantized_layers(quantize(model, policy='W4A4'))
    assert layers
    assert all('reparam' in name for name in layers)


@pytest.mark.parametrize('quant', [dict(policy='W2A2'), SEARCH])
def test_another_weight_is_refused(quant):
    """BatchNorms of other tools are folded into a weight whose range is kept."""
    model = quantize(net(False), **quant).eval()
    with pytest.raises(RuntimeError, match='weight: found another one'):
        fuse_conv_bn(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state['0.weight'] *= 2
    model.load_state_dict(state, assign=True)
    assert torch.equal(model[0].weight, state['0.weight'])


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file
