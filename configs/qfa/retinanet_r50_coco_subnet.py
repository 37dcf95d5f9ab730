# The net of a policy for retinanet_r50_coco.py: tested as it is, or fine-tuned.
# Schedule (our default): 4 epochs at a tenth of the 1x learning rate.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/qfa.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/qfa/retinanet_r50_coco_subnet'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(
        _base_.subnet,
        policy='work_dirs/qfa/retinanet_r50_coco/policy.json',
        fixed=_base_.float_stem,
    ),
)
load_from = 'work_dirs/qfa/retinanet_r50_coco/epoch_12.pth'
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=0.001), paramwise_cfg=_base_.no_decay)
custom_hooks = [_base_.calibration]
