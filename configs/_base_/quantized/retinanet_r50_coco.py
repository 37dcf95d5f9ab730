# Search (our default): 4 epochs at a tenth of the 1x learning rate
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    # Layers that lose bits have to learn: none is frozen. The checkpoint below brings
    # the backbone too.
    backbone=dict(frozen_stages=-1, init_cfg=None),
)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=0.001))
ends = ['backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg']
