# The net of a policy for resnet18_imagenet.py: tested as it is, or fine-tuned.
# Schedule (our default): 10 epochs from a tenth of its learning rate.
_base_ = ['../_base_/quantized/resnet18_imagenet.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/resnet18_imagenet_subnet'

policy = 'work_dirs/qfa/resnet18_imagenet/policy.json'
model = dict(quant=dict(_base_.subnet, policy=policy, fixed=_base_.float_stem))
load_from = 'work_dirs/qfa/resnet18_imagenet/epoch_30.pth'
train_cfg = dict(max_epochs=10)
param_scheduler = dict(milestones=[5, 8])
optim_wrapper = dict(optimizer=dict(lr=0.001), paramwise_cfg=_base_.no_decay)
custom_hooks = [_base_.calibration]
