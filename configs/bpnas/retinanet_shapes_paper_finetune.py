_base_ = 'retinanet_shapes_paper.py'

model = dict(quant=dict(policy='work_dirs/retinanet_shapes_paper/policy.json'))
load_from = 'work_dirs/retinanet_shapes_paper/searched.pth'
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [_base_.linear, dict(_base_.cosine, T_max=5)]
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
