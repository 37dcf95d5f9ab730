# Faster R-CNN-R50, COCO, BOPs of uniform W4A4 at 1000 proposals.
# Schedule (our default): 4 epochs at a tenth of the 1x learning rate.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/bpnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='FasterRCNN',
    # Layers that lose bits have to learn: none is frozen. The checkpoint below brings
    # the backbone too.
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer),
)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=0.002))
budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 800, 1333), proposals=1000)
custom_hooks = [dict(_base_.search, budgets=[budget])]
