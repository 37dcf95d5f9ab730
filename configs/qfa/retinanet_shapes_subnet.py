# The net of a policy for retinanet_shapes.py: tested as it is, or fine-tuned
_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_shapes_subnet'

policy = 'work_dirs/qfa/retinanet_shapes/policy.json'
model = dict(quant=dict(_base_.subnet, policy=policy, fixed=_base_.float_stem))
load_from = 'work_dirs/qfa/retinanet_shapes/epoch_3.pth'
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [_base_.linear, dict(_base_.cosine, T_max=3)]
default_hooks = dict(checkpoint=dict(interval=3))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=_base_.no_decay)
custom_hooks = [_base_.calibration]
