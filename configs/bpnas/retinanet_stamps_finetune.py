_base_ = 'retinanet_stamps.py'

model = dict(quant=dict(policy='work_dirs/retinanet_stamps/policy.json'))
load_from = 'work_dirs/retinanet_stamps/searched.pth'
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
