"""What subnets are measured on; how the numbers come out is tested with the tool."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from torch import nn

from mmmpq.engine import subnet_evaluation
from mmmpq.engine.subnet_evaluation import Measure, SubnetEvaluation
from mmmpq.models import quantize


class Corners(BaseModel):
    """Its loss is the sum of the coordinates of the ground truth's boxes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, inputs, data_samples, mode):
        boxes = [s.gt_instances.bboxes.tensor.sum() for s in data_samples]
        return dict(loss=sum(boxes) + 0 * sum(i.sum() for i in inputs))


@pytest.mark.parametrize('wrapped', [False, True])
def test_the_loss_sees_boxes_of_the_resized_image(tmp_path, monkeypatch, wrapped):
    cv2.imwrite(str(tmp_path / '1.png'), np.zeros((20, 40, 3), np.uint8))
    box = dict(id=1, image_id=1, category_id=1, bbox=[4, 2, 12, 10], area=120)
    coco = dict(
        images=[dict(id=1, file_name='1.png', width=40, height=20)],
        annotations=[dict(box, iscrowd=0)],
        categories=[dict(id=1, name='thing')],
    )
    (tmp_path / 'coco.json').write_text(json.dumps(coco))
    pipeline = [  # in the order of mmdet's configs
        dict(type='mmdet.LoadImageFromFile'),
        dict(type='mmdet.Resize', scale=(80, 40), keep_ratio=True),
        dict(type='mmdet.LoadAnnotations', with_bbox=True),
        dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'img_shape')),
    ]
    dataset = dict(
        type='mmdet.CocoDataset',
        metainfo=dict(classes=('thing',)),
        ann_file=str(tmp_path / 'coco.json'),
        data_prefix=dict(img=f'{tmp_path}/'),
        test_mode=True,
        pipeline=pipeline,
    )
    if wrapped:
        dataset = dict(type='RepeatDataset', dataset=dataset, times=2)
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    given = Config(dict(val_dataloader=loader, val_evaluator=dict(type='None')))
    for name in ('train_batches', 'calibrate_subnet'):
        monkeypatch.setattr(subnet_evaluation, name, lambda *args: None)
    runner = SimpleNamespace(
        cfg=given,
        seed=0,
        build_evaluator=lambda cfg: Evaluator([]),
        model=quantize(Corners(), candidates=[(2, 2), (4, 4)], mixing='sampled'),
    )
    evaluation = SubnetEvaluation(runner, Measure(1, loss=True))
    assert evaluation(evaluation.space.smallest()) == {'loss': 8 + 4 + 32 + 24}
    (first, *_) = SubnetEvaluation(runner, Measure(1)).batches  # as the config says
    (sample,) = first['data_samples']
    assert sample.img_shape == (40, 80)
    assert sample.gt_instances.bboxes.tensor.tolist() == [[4, 2, 16, 12]]
