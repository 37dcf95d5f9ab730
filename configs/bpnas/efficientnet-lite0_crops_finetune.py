_base_ = 'efficientnet-lite0_crops.py'

model = dict(quant=dict(policy='work_dirs/efficientnet-lite0_crops/policy.json'))
load_from = 'work_dirs/efficientnet-lite0_crops/searched.pth'
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
