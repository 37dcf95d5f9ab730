"""Small nets of fixed precision, calibrated, whose BatchNorms do something."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.layers.base import calibrating

CLASSIFIER = dict(
    default_scope='mmpretrain',
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=4),
    model=dict(
        type='mmmpq.QuantModel',
        base_type='ImageClassifier',
        quant=dict(policy='W3A4'),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=16, topk=(1,)),
    ),
)


@pytest.fixture
def classifier():
    """Config of a ResNet of eleven layers; keys of ``quant`` are overridden."""

    def make(**quant):
        config = Config(copy.deepcopy(CLASSIFIER))
        config.model.quant.update(quant)
        return config

    return make


@pytest.fixture
def settled():
    """The model of a config, in evaluation, as if it had been trained."""

    @torch.no_grad()
    def make(config, size=32):
        init_default_scope(config.default_scope)
        model = dict(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        net = MODELS.build(model)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        with calibrating(net.eval()):
            net(torch.randn(2, 3, size, size))
        return net

    return make


@pytest.fixture
def outputs():
    """All tensors that a model's network gives for fixed images, as one list."""

    def flat(value):
        if isinstance(value, torch.Tensor):
            return [value]
        return [tensor for part in value for tensor in flat(part)]

    @torch.no_grad()
    def run(net, size=32):
        images = torch.randn(
            2, 3, size, size, generator=torch.Generator().manual_seed(1)
        )
        dtype = next(net.parameters()).dtype
        return flat(net(images.to(dtype), mode='tensor'))

    return run
