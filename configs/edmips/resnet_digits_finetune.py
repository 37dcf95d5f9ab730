_base_ = 'resnet_digits.py'
work_dir = 'work_dirs/edmips/resnet_digits_finetune'

model = dict(quant=dict(policy='work_dirs/edmips/resnet_digits/policy.json'))
load_from = 'work_dirs/edmips/resnet_digits/searched.pth'
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
