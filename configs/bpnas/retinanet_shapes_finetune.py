_base_ = 'retinanet_shapes.py'

model = dict(quant=dict(policy='work_dirs/retinanet_shapes/policy.json'))
load_from = 'work_dirs/retinanet_shapes/searched.pth'
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=5, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
