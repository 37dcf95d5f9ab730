"""What a detector learns from its teacher."""

import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmmpq.engine.distillation import Distillation
from mmmpq.models import quantize

SMALL = {
    'backbone.depth': 18,
    'backbone.base_channels': 4,
    'backbone.frozen_stages': -1,
    'backbone.init_cfg': None,
    'neck.in_channels': [4, 8, 16, 32],
    'neck.out_channels': 8,
}
NETS = {
    'retinanet/retinanet_r50_fpn_1x_coco.py': {
        'bbox_head.in_channels': 8,
        'bbox_head.feat_channels': 8,
        'bbox_head.stacked_convs': 1,
    },
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': {
        'rpn_head.in_channels': 8,
        'rpn_head.feat_channels': 8,
        'roi_head.bbox_roi_extractor.out_channels': 8,
        'roi_head.bbox_head.in_channels': 8,
        'roi_head.bbox_head.fc_out_channels': 16,
    },
}


@pytest.fixture
def pair(tmp_path):
    """A quantized detector and the teacher of a config, both with random weights."""

    def build(name, classes=80):
        cfg = get_config(f'mmdet::{name}')
        changes = {**SMALL, **NETS[name]}
        cfg.merge_from_dict({f'model.{k}': v for k, v in changes.items()})
        init_default_scope('mmdet')
        student = MODELS.build(copy.deepcopy(cfg.model))
        if classes != 80:
            cfg.model.bbox_head.num_classes = classes
        teacher = MODELS.build(copy.deepcopy(cfg.model))
        teacher.init_weights()
        cfg.dump(tmp_path / 'teacher.py')
        torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
        names = dict(config=str(tmp_path / 'teacher.py'))
        names['checkpoint'] = str(tmp_path / 'teacher.pth')
        return quantize(student, policy='W4A4').train(), teacher.eval(), names

    return build


def batch(model):
    packed = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 2], num_classes=4)
    return model.data_preprocessor(packed, True)


FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'


def test_the_teachers_head_gives_what_it_gives_in_training(tmp_path):
    cfg = get_config(f'mmdet::{FCOS}')
    cfg.merge_from_dict({f'model.{k}': v for k, v in SMALL.items()})
    head = dict(in_channels=8, feat_channels=32, stacked_convs=1)
    cfg.model.bbox_head.update(head)
    cfg.model.neck.out_channels = 8
    init_default_scope('mmdet')
    student = MODELS.build(copy.deepcopy(cfg.model)).train()
    assert student.bbox_head.norm_on_bbox  # which has other outputs in evaluation
    cfg.dump(tmp_path / 'teacher.py')
    torch.save(student.state_dict(), tmp_path / 'teacher.pth')
    names = dict(config=str(tmp_path / 'teacher.py'))
    names['checkpoint'] = str(tmp_path / 'teacher.pth')
    distillation = Distillation(student, names)
    losses = student._run_forward(batch(student), mode='loss')
    assert losses['loss_distill'] == 0
    teacher = distillation.teacher
    assert not any(m.training for m in teacher.backbone.modules())


@pytest.mark.parametrize('name', NETS)
def test_neck_and_head_are_compared_level_by_level(pair, name):
    student, teacher, names = pair(name)
    distillation = Distillation(student, names, weight=2.0)
    dense = 'bbox_head' if 'retinanet' in name else 'rpn_head'
    assert distillation.match == {'neck': 'l2', dense: 'smooth_l1'}
    data = batch(student)
    seen = {}
    handles = [
        getattr(student, part).register_forward_hook(
            lambda m, i, out, part=part: seen.update({part: out})
        )
        for part in ('neck', dense)
    ]
    losses = student._run_forward(data, mode='loss')
    with torch.no_grad():
        features = teacher.extract_feat(data['inputs'])
        wanted = getattr(teacher, dense)(features)
    terms = [
        (s - t).square().sum() / t.square().sum()
        for s, t in zip(seen['neck'], features, strict=True)
    ]
    outputs = [
        torch.nn.functional.smooth_l1_loss(s, t)
        for ours, theirs in zip(seen[dense], wanted, strict=True)
        for s, t in zip(ours, theirs, strict=True)
    ]
    expected = 2 * (torch.stack(terms).mean() + torch.stack(outputs).mean())
    torch.testing.assert_close(losses['loss_distill'], expected, rtol=1e-4, atol=1e-5)
    loss, _ = student.parse_losses(losses)
    loss.backward()
    assert all(p.grad is None for p in distillation.teacher.parameters())
    for handle in handles:
        handle.remove()
    with torch.no_grad():  # as a calibration
        assert 'loss_distill' not in student._run_forward(data, mode='loss')
    distillation.remove()
    assert 'loss_distill' not in student._run_forward(data, mode='loss')


def test_a_teacher_of_other_classes(pair):
    name = 'retinanet/retinanet_r50_fpn_1x_coco.py'
    student, _, names = pair(name, classes=7)
    message = 'bbox_head has 7 classes; accepted are those of the model, 80'
    with pytest.raises(ValueError, match=message):
        Distillation(student, names)


def test_a_search_and_its_fine_tuning_learn_from_a_teacher(make, hook_of, tmp_path):
    """Weights and logits both; without a share of the loss they go another way."""
    init_default_scope('mmengine')
    teacher = MODELS.build(dict(type='TinyNet'))
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    (tmp_path / 'teacher.py').write_text("model = dict(type='TinyNet')\n")
    names = dict(config=str(tmp_path / 'teacher.py'))
    names['checkpoint'] = str(tmp_path / 'teacher.pth')
    ends = []
    for weight in (0.0, 5.0):
        hook = dict(
            type='mmmpq.DistillationHook',
            teacher=names,
            weight=weight,
            match=dict(fc='soft_cross_entropy'),
        )
        runner = make(search={}, hooks=[hook], **{'train_cfg.max_epochs': 1})
        runner.train()
        assert 'train/loss_distill' in runner.message_hub.log_scalars
        ends.append(torch.cat(hook_of(runner).search.space.logits))
        data = dict(inputs=torch.zeros(1, 3, 8, 8), labels=torch.zeros(1).long())
        assert set(runner.model.train()(**data, mode='loss')) == {'loss'}
    assert not torch.equal(*ends)
