_base_ = 'resnet20_fashion.py'

model = dict(quant=dict(policy='work_dirs/resnet20_fashion/policy.json'))
load_from = 'work_dirs/resnet20_fashion/searched.pth'
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = dict(T_max=3)
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
