# The net of a policy for resnet_digits.py: tested as it is, or fine-tuned
_base_ = ['../_base_/quantized/resnet_digits.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/resnet_digits_subnet'

policy = 'work_dirs/qfa/resnet_digits/policy.json'
model = dict(quant=dict(_base_.subnet, policy=policy, fixed=_base_.float_stem))
load_from = 'work_dirs/qfa/resnet_digits/epoch_20.pth'
optim_wrapper = dict(optimizer=dict(lr=0.01), paramwise_cfg=_base_.no_decay)
custom_hooks = [_base_.calibration]
