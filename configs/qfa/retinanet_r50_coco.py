# RetinaNet-R50, COCO, elastic in its bits alone.
# Schedule (our default): 1x at a tenth of its learning rate.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/qfa.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/qfa/retinanet_r50_coco'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    # Layers that lose bits have to learn: none is frozen. The checkpoint below brings
    # the backbone too.
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(_base_.supernet, fixed=_base_.float_stem),
)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
train_cfg = dict(val_interval=12)
optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    paramwise_cfg=_base_.no_decay,
    clip_grad=dict(max_norm=500),
)
custom_hooks = [
    dict(
        _base_.training,
        teacher=dict(
            config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint=load_from
        ),
    )
]
