"""Configs of the toolboxes, made small, through the whole life of a quantized net."""

import copy

import pytest
import torch
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mmmpq.layers import quantized_layers
from mmmpq.models import apply_policy
from mmmpq.search import SearchSpace

OURS = ('quantizer', 'relaxation')
CANDIDATES = [(2, 2), (3, 4), (4, 4), (8, 8)]

RESNET = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.init_cfg': None,
}
FPN = {'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 16}
RPN = {'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16}
BOX = {
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.roi_head.bbox_head.num_classes': 10,
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.train_cfg.rcnn.sampler.num': 32,
    'model.test_cfg.rpn.max_per_img': 20,
}
DENSE = {
    'model.bbox_head.in_channels': 16,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.num_classes': 10,
}

DETECTORS = {
    'retinanet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        {**RESNET, **FPN, **DENSE, 'model.bbox_head.stacked_convs': 1},
    ),
    'faster-rcnn': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {**RESNET, **FPN, **RPN, **BOX},
    ),
    'mask-rcnn-resnext-dcn': (
        'mmdet::mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco.py',
        {
            'model.backbone.depth': 50,
            'model.backbone.base_channels': 16,
            'model.backbone.init_cfg': None,
            'model.backbone.groups': 4,
            'model.backbone.base_width': 4,
            'model.backbone.dcn': {'type': 'DCN', 'deform_groups': 1},
            'model.backbone.stage_with_dcn': (False, False, False, True),
            'model.neck.in_channels': [64, 128, 256, 512],
            'model.neck.out_channels': 16,
            **RPN,
            **BOX,
            'model.roi_head.mask_roi_extractor.out_channels': 16,
            'model.roi_head.mask_head.in_channels': 16,
            'model.roi_head.mask_head.conv_out_channels': 16,
            'model.roi_head.mask_head.num_classes': 10,
        },
    ),
    'fcos': (
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        {
            **RESNET,
            'model.neck.in_channels': [8, 16, 32, 64],
            'model.neck.out_channels': 32,
            **DENSE,
            'model.bbox_head.in_channels': 32,
            'model.bbox_head.feat_channels': 32,
            'model.bbox_head.stacked_convs': 1,
        },
    ),
    'rtmdet-tiny': (
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        {
            'model.backbone.init_cfg': None,
            'model.backbone.widen_factor': 0.125,
            'model.neck.in_channels': [32, 64, 128],
            'model.neck.out_channels': 16,
            **DENSE,
        },
    ),
    'yolox': (
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
        {
            'model.data_preprocessor.batch_augments': None,
            'model.backbone.widen_factor': 0.125,
            'model.neck.in_channels': [32, 64, 128],
            'model.neck.out_channels': 16,
            **DENSE,
        },
    ),
    'detr': (
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        {
            **RESNET,
            'model.num_queries': 12,
            'model.neck.in_channels': [64],
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 2,
            'model.bbox_head.num_classes': 10,
            'model.test_cfg': {'max_per_img': 10},
        },
    ),
    'conditional-detr': (
        'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        {
            **RESNET,
            'model.num_queries': 12,
            'model.neck.in_channels': [64],
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 2,
            'model.bbox_head.num_classes': 10,
            'model.test_cfg.max_per_img': 10,
        },
    ),
    'deformable-detr': (
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        {
            **RESNET,
            'model.num_queries': 12,
            'model.neck.in_channels': [16, 32, 64],
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 2,
            'model.bbox_head.num_classes': 10,
            'model.test_cfg.max_per_img': 10,
        },
    ),
}
CLASSIFIERS = {
    'swin': (
        'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
        {
            'model.backbone.arch': {
                'embed_dims': 8,
                'depths': [1, 2, 1, 1],
                'num_heads': [1, 2, 2, 2],
            },
            'model.backbone.img_size': 64,
            'model.backbone.window_size': 2,
            'model.head.in_channels': 64,
            'model.head.num_classes': 10,
        },
        64,
    ),
    'mobilenet-v2': (
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        {
            'model.backbone.widen_factor': 0.25,
            'model.head.num_classes': 10,
        },
        32,
    ),
    'resnext': (
        'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py',
        {
            'model.backbone.groups': 4,
            'model.backbone.width_per_group': 4,
            'model.backbone.base_channels': 16,
            'model.backbone.stem_channels': 16,
            'model.head.in_channels': 512,
            'model.head.num_classes': 10,
        },
        32,
    ),
    'dilated-resnet-v1d': (
        'mmpretrain::resnet/resnetv1d50_8xb32_in1k.py',
        {
            'model.backbone.depth': 18,
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.backbone.strides': (1, 2, 1, 1),
            'model.backbone.dilations': (1, 1, 2, 4),
            'model.head.in_channels': 64,
            'model.head.num_classes': 10,
        },
        32,
    ),
    'vit': (
        'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
        {
            'model.backbone.arch': {
                'embed_dims': 32,
                'num_layers': 2,
                'num_heads': 2,
                'feedforward_channels': 64,
            },
            'model.backbone.img_size': 32,
            'model.head.in_channels': 32,
            'model.head.num_classes': 10,
        },
        32,
    ),
}


def load(name, changes):
    cfg = get_config(name)
    changes = dict(changes)
    arch = changes.pop('model.backbone.arch', None)
    cfg.merge_from_dict(changes)
    if arch:  # it takes the place of a name, which a merge refuses
        cfg.model.backbone.arch = arch
    cfg.model.train_cfg = _without_augments(cfg.model.get('train_cfg'))
    init_default_scope(name.split('::')[0])
    return cfg


def _without_augments(train_cfg):
    """Mixup needs batches of soft labels, and says nothing about quantization."""
    if train_cfg and 'augments' in train_cfg:
        return None
    return train_cfg


def quantized(cfg, **quant):
    model = copy.deepcopy(cfg.model)
    model.update(base_type=model.type, type='mmmpq.QuantModel', quant=quant)
    return MODELS.build(model)


def live(cfg, batch, tmp_path):
    """Builds, trains a step, derives, reloads; returns the model before the last."""
    torch.manual_seed(0)
    float_model = MODELS.build(copy.deepcopy(cfg.model))
    float_model.init_weights()
    with torch.no_grad():  # where layers start at zero, no gradient flows
        for param in float_model.parameters():
            param.add_(torch.randn_like(param), alpha=0.02)
    state = float_model.state_dict()
    model = quantized(cfg, candidates=CANDIDATES)
    assert type(model) is type(float_model)
    joint = 'in_proj_weight', 'in_proj_bias'  # which are loaded in three parts
    assert {n for n in state if not n.endswith(joint)} <= set(model.state_dict())
    assert not any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(any(part in key for part in OURS) for key in missing)

    # one architecture step
    space = SearchSpace(model)
    model.train()
    for logits in space.logits:
        logits.requires_grad_(True)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    grads = torch.autograd.grad(loss, space.logits, allow_unused=True)
    for logits in space.logits:
        logits.requires_grad_(False)
    assert torch.isfinite(loss)
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert sum(bool(g.any()) for g in grads) > 0.8 * len(grads)

    # one weight step, with the config's own optimizer and paramwise rules
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: layer.weight.clone() for n, layer in quantized_layers(model).items()}
    model.train_step(copy.deepcopy(batch), optim)
    after = quantized_layers(model)
    assert any(not torch.equal(w, after[n].weight) for n, w in before.items())

    # the found net, saved and built anew
    choice = [g % len(CANDIDATES) for g in range(len(space.groups))]
    policy = space.policy(choice)
    path = policy.save(tmp_path / 'policy.json')
    apply_policy(model, policy)
    torch.save(model.state_dict(), tmp_path / 'net.pth')
    again = quantized(cfg, policy=str(path))
    again.load_state_dict(torch.load(tmp_path / 'net.pth'))
    model.eval(), again.eval()
    with torch.no_grad():
        first = model.test_step(copy.deepcopy(batch))
        second = again.test_step(copy.deepcopy(batch))
    return first, second, again


@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name, tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    config, changes = DETECTORS[name]
    cfg = load(config, changes)
    mask = 'mask' in name
    size = {'rtmdet-tiny': 64, 'yolox': 64, 'mask-rcnn-resnext-dcn': 96}.get(name, 48)
    batch = demo_mm_inputs(2, (3, size, size), num_items=[2, 0], with_mask=mask)
    first, second, model = live(cfg, batch, tmp_path)
    for one, two in zip(first, second, strict=True):
        one, two = one.pred_instances, two.pred_instances
        assert len(one) == len(two)
        assert torch.equal(one.scores, two.scores)
        assert torch.equal(one.bboxes, two.bboxes)
    if hasattr(model, 'roi_head'):
        no_proposals(model, batch)


def no_proposals(model, batch):
    """The RoI heads' layers on batches of nothing, forward and backward."""
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    samples = data['data_samples']
    proposals = []
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
        proposals.append(
            InstanceData(
                bboxes=torch.zeros(0, 4),
                scores=torch.zeros(0),
                labels=torch.zeros(0, dtype=torch.long),
            )
        )
    model.train()
    features = model.extract_feat(data['inputs'])
    losses = model.roi_head.loss(features, copy.deepcopy(proposals), samples)
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    with torch.no_grad():
        found = model.roi_head.predict(features, proposals, samples)
        head = model.roi_head.bbox_head
        scores, _ = head(torch.zeros(0, 16, 7, 7))
    assert [len(r) for r in found] == [0, 0]
    assert scores.shape == (0, 11)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier(name, tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    config, changes, size = CLASSIFIERS[name]
    cfg = load(config, changes)
    batch = dict(
        inputs=torch.randint(0, 255, (4, 3, size, size), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i) for i in range(4)],
    )
    first, second, _ = live(cfg, batch, tmp_path)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.pred_score, two.pred_score)
        assert torch.isfinite(one.pred_score).all()
