"""An export compares what the packed net gives, not its weights alone."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.export.packed import check
from mmmpq.models import quantize


def test_outputs_are_compared():
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', in_channels=32, num_classes=4)
    backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
    neck = dict(type='GlobalAveragePooling')
    model = MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    )
    quantize(model, policy='W4A4')(torch.randn(2, 3, 32, 32))
    other = copy.deepcopy(model.eval())
    check.check_outputs(model, other, (3, 32, 32))
    with torch.no_grad():
        other.head.fc.bias += 0.1
    with pytest.raises(RuntimeError, match='gives other outputs'):
        check.check_outputs(model, other, (3, 32, 32))


def test_a_net_that_needs_more_than_images_is_not_compared(monkeypatch):
    model = nn.Module()
    model.head = nn.Linear(2, 2)
    model.extract_feat = lambda images: images * model.mask
    said = []
    monkeypatch.setattr(check, 'print_log', lambda text, **_: said.append(text))
    check.check_outputs(model, model, (3, 32, 32))
    (text,) = said
    assert 'cannot run on images alone' in text and 'mask' in text
