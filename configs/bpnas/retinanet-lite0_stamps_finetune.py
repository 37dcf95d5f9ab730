_base_ = 'retinanet-lite0_stamps.py'

model = dict(quant=dict(policy='work_dirs/retinanet-lite0_stamps/policy.json'))
load_from = 'work_dirs/retinanet-lite0_stamps/searched.pth'
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
