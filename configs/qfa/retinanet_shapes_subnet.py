# The net of a policy for retinanet_shapes.py: tested as it is, or fine-tuned
_base_ = ['../float/retinanet_shapes_float.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_shapes_subnet'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    quant=dict(
        _base_.subnet,
        policy='work_dirs/qfa/retinanet_shapes/policy.json',
        fixed=_base_.float_stem,
    ),
)
load_from = 'work_dirs/qfa/retinanet_shapes/epoch_3.pth'
train_cfg = dict(max_epochs=3, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=_base_.no_decay)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=3))
custom_hooks = [_base_.calibration]
