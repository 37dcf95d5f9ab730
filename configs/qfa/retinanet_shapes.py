_base_ = ['../float/retinanet_shapes_float.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_shapes'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    quant=dict(_base_.supernet, fixed=_base_.float_stem),
)
load_from = 'work_dirs/retinanet_shapes_float/epoch_12.pth'
train_cfg = dict(max_epochs=3, val_interval=3)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=_base_.no_decay,
    clip_grad=dict(max_norm=60),  # six passes
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=3))
custom_hooks = [
    dict(
        _base_.training,
        teacher=dict(
            config='{{ fileDirname }}/../float/retinanet_shapes_float.py',
            checkpoint=load_from,
        ),
    )
]
