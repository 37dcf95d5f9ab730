import copy

import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

SMALL = {
    'retinanet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        {
            'neck.in_channels': [8, 16, 32, 64],
            'neck.out_channels': 16,
            'bbox_head.in_channels': 16,
            'bbox_head.feat_channels': 16,
            'bbox_head.num_classes': 10,
            'bbox_head.stacked_convs': 1,
        },
    ),
    'faster-rcnn': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {
            'neck.in_channels': [8, 16, 32, 64],
            'neck.out_channels': 16,
            'rpn_head.in_channels': 16,
            'rpn_head.feat_channels': 16,
            'roi_head.bbox_roi_extractor.out_channels': 16,
            'roi_head.bbox_head.in_channels': 16,
            'roi_head.bbox_head.fc_out_channels': 32,
        },
    ),
    'resnet': (
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        {
            'backbone.stem_channels': 8,
            'head.in_channels': 64,
            'head.num_classes': 10,
            'head.topk': (1,),
        },
    ),
}
BACKBONE = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'backbone.init_cfg': None,
}


@pytest.fixture
def small():
    """Config of a small toolbox model by name; its default scope is set."""

    def make(name):
        config, changes = SMALL[name]
        cfg = get_config(config)
        changes = {f'model.{k}': v for k, v in {**BACKBONE, **changes}.items()}
        cfg.merge_from_dict(changes)
        init_default_scope(config.split('::')[0])
        return cfg.model

    return make


@pytest.fixture
def build():
    """Build a model from a config, quantized if ``quant`` keys are given; its ends are
    then at 8/8, unless they say otherwise."""

    def make(cfg, **quant):
        cfg = copy.deepcopy(cfg)
        if quant:
            quant.setdefault('ends', 'fixed')
            cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=quant)
        return MODELS.build(cfg)

    return make
