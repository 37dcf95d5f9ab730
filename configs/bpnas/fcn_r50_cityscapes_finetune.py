# The net that fcn_r50_cityscapes.py found.
# Schedule (our default): half of the base's iterations from half its learning rate.
_base_ = 'fcn_r50_cityscapes.py'

model = dict(quant=dict(policy='work_dirs/fcn_r50_cityscapes/policy.json'))
load_from = 'work_dirs/fcn_r50_cityscapes/searched.pth'
train_cfg = dict(max_iters=20000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [dict(_base_.poly, end=20000)]
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
