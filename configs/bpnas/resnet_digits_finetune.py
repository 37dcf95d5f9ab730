_base_ = 'resnet_digits.py'

model = dict(quant=dict(policy='work_dirs/resnet_digits/policy.json'))
load_from = 'work_dirs/resnet_digits/searched.pth'
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
