"""Nothing silent: what a quantized layer is said to do, it does, in thirty nets.

Of every quantized layer: it is called as often as its float twin, or as what holds the
twin hands its weight to ``F.linear``; its weight is used through its quantizer alone;
it is priced as it is called; a gradient reaches its logits; and it gives the same after
packing.
"""

import copy
from collections import Counter

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmmpq.costs import profile
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import quantized_layers
from mmmpq.models import apply_policy, quantize
from mmmpq.models.build import _without_pretrained
from mmmpq.search import SearchSpace

CANDIDATES = ['W2A2', 'W4A4', 'W8A8']
SIDE = 64

R18 = dict(depth=18, base_channels=8, stem_channels=8)
CLASSIFIERS = {
    'resnet': dict(type='ResNet', **R18),
    'resnet-v1c': dict(type='ResNetV1c', **R18),
    'seresnet': dict(type='SEResNet', depth=50, base_channels=4, stem_channels=4),
    'resnext': dict(type='ResNeXt', depth=50, groups=4, width_per_group=4),
    'regnet': dict(type='RegNet', arch='regnetx_400mf'),
    'mobilenet-v2': dict(type='MobileNetV2', widen_factor=0.25),
    'mobilenet-v3': dict(type='MobileNetV3', arch='small'),
    'shufflenet-v2': dict(type='ShuffleNetV2', widen_factor=0.5),
    'efficientnet': dict(type='EfficientNet', arch='b0'),
    'vgg': dict(type='VGG', depth=11, norm_cfg=dict(type='BN')),
    'repvgg': dict(type='RepVGG', arch='A0', out_indices=(3,)),
    'densenet': dict(
        type='DenseNet',
        arch=dict(growth_rate=4, depths=[1] * 4, init_channels=8),
    ),
    'convnext': dict(
        type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
    ),
    'vit': dict(
        type='VisionTransformer', img_size=SIDE,
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
    ),
    'beit': dict(
        type='BEiTViT', img_size=SIDE, out_type='avg_featmap',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
    ),
    'swin': dict(
        type='SwinTransformer', img_size=SIDE, window_size=4, out_indices=(1,),
        arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
    ),
    'swin-v2': dict(
        type='SwinTransformerV2', img_size=SIDE, window_size=4, out_indices=(1,),
        arch=dict(
            embed_dims=16, depths=[2, 2], num_heads=[2, 4], extra_norm_every_n_blocks=0
        ),
    ),
    'poolformer': dict(
        type='PoolFormer',
        arch=dict(
            layers=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], mlp_ratios=[2] * 4,
            layer_scale_init_value=1.0,
        ),
    ),
    'levit': dict(type='LeViT', arch='128s', img_size=SIDE),
    'van': dict(
        type='VAN',
        arch=dict(embed_dims=[8, 16, 24, 32], depths=[1] * 4, ffn_ratios=[2] * 4),
    ),
}  # fmt: skip
FPN = {'neck.in_channels': [8, 16, 32, 64], 'neck.out_channels': 16}
DENSE = {**FPN, 'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16}
FASTER = {
    **FPN,
    'rpn_head.in_channels': 16,
    'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16,
    'roi_head.bbox_head.in_channels': 16,
    'roi_head.bbox_head.fc_out_channels': 32,
}
WIDE = {  # GroupNorm has 32 groups
    **DENSE,
    'neck.out_channels': 64,
    'bbox_head.in_channels': 64,
    'bbox_head.feat_channels': 64,
}
DETECTORS = {
    'retinanet/retinanet_r50_fpn_1x_coco': DENSE,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': WIDE,
    'atss/atss_r50_fpn_1x_coco': WIDE,
    'gfl/gfl_r50_fpn_1x_coco': WIDE,
    'tood/tood_r50_fpn_1x_coco': WIDE,
    'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco': WIDE,
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': FASTER,
    'yolox/yolox_tiny_8xb8-300e_coco': {},
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': {},
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco': {},
}


def classifier(backbone):
    init_default_scope('mmpretrain')
    net = MODELS.build(copy.deepcopy(backbone))
    net.eval()
    with torch.no_grad():
        out = net(torch.zeros(2, 3, SIDE, SIDE))[-1]
    neck = dict(type='GlobalAveragePooling') if out.dim() == 4 else None
    head = dict(type='LinearClsHead', in_channels=out.shape[1], num_classes=4)
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


def detector(name, changes):
    init_default_scope('mmdet')
    cfg = get_config(f'mmdet::{name}.py').model
    if changes:
        cfg.backbone.update(depth=18, base_channels=8)
        for key, value in changes.items():
            part = cfg
            *path, last = key.split('.')
            for step in path:
                part = part[step]
            part[last] = value
    _without_pretrained(cfg)
    return cfg


@pytest.fixture(autouse=True)
def _own_scope():
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, (tuple, list)):
        return [t for part in out for t in tensors(part)]
    return []


def features(model, x):
    """What a loss would be of: for a two-stage one, of both."""
    out = model.extract_feat(x)
    if hasattr(model, 'roi_head'):
        boxes = torch.tensor([[0.0, 4, 4, 40, 40], [1, 8, 0, 60, 30]])
        return tensors(model.rpn_head(out)) + tensors(
            tuple(model.roi_head._bbox_forward(out, boxes).values())
        )
    head = model.bbox_head if hasattr(model, 'bbox_head') else model.head
    return tensors(head(out))


class HandedWeights(TorchFunctionMode):
    """Counts calls of ``F.linear`` with weights, given as names by their ids."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.counts = weights, Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs['weight']
            self.counts[self.weights.get(id(weight))] += 1
        return func(*args, **kwargs)


def audit(cfg):
    torch.manual_seed(0)
    x = torch.randn(2, 3, SIDE, SIDE)
    model = MODELS.build(copy.deepcopy(cfg))
    with torch.no_grad():
        for p in model.parameters():  # none of zero
            p.add_(0.02 * torch.randn_like(p))
    twin = copy.deepcopy(model)
    quantize(model, candidates=CANDIDATES)
    layers = quantized_layers(model)
    assert len(layers) > 4

    def calls(net):
        found = dict.fromkeys(layers, 0)
        hooks = [
            net.get_submodule(n).register_forward_hook(
                lambda *_, n=n: found.__setitem__(n, found[n] + 1)
            )
            for n in layers
        ]
        out = features(net, x)
        for hook in hooks:
            hook.remove()
        return found, out

    for net in (model, twin):
        net.train()
    weights = {id(twin.get_submodule(n).weight): n for n in layers}
    with HandedWeights(weights) as handed:
        wanted = calls(twin)[0]
    wanted = {n: count or handed.counts[n] for n, count in wanted.items()}
    features(model, x)  # calibrates
    space = SearchSpace(model)
    for logits in space.logits:
        logits.requires_grad_(True)
    found, out = calls(model)
    assert found == wanted

    # A weight is used through its quantizer alone: without it, no gradient reaches it.
    loss = sum((t * torch.randn_like(t)).sum() for t in out)
    grads = torch.autograd.grad(loss, space.logits, allow_unused=True)
    dead = [
        g.name
        for g, grad in zip(space.groups, grads, strict=True)
        if grad is None or not grad.abs().sum()
    ]
    assert not dead
    for logits in space.logits:
        logits.requires_grad_(False)
    apply_policy(model, space.policy([1] * len(space.groups)))
    cut = [
        m.w_quantizer.register_forward_hook(lambda m, i, o: o.detach())
        for m in layers.values()
    ]
    sum(t.sum() for t in features(model, x)).backward()
    assert [n for n, m in layers.items() if m.weight.grad is not None] == []
    for hook in cut:
        hook.remove()

    priced = {p.name: p for p in profile(model, (3, SIDE, SIDE))}
    assert all(priced[n].calls == wanted[n] for n in layers)
    assert all(priced[n].macs > 0 for n in layers)
    return model, x


def packed(model, cfg, x, scope, tmp_path):
    model.eval()
    whole = dict(model=dict(cfg, type='mmmpq.QuantModel', base_type=cfg['type']))
    whole['model']['quant'] = dict(policy='W4A4')
    whole['default_scope'] = scope
    path = save_packed(model, tmp_path / 'x.safetensors', whole)
    again = load_packed(path)
    with torch.no_grad():
        pairs = zip(features(again, x), features(model, x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier(name, tmp_path):
    cfg = classifier(CLASSIFIERS[name])
    model, x = audit(cfg)
    packed(model, cfg, x, 'mmpretrain', tmp_path)


@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name, tmp_path):
    cfg = detector(name, DETECTORS[name])
    model, x = audit(cfg)
    packed(model, cfg, x, 'mmdet', tmp_path)
