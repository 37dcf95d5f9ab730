# The net that resnet18_imagenet.py found, from scratch
_base_ = 'resnet18_imagenet.py'
work_dir = 'work_dirs/edmips/resnet18_imagenet_scratch'

model = dict(quant=dict(policy='work_dirs/edmips/resnet18_imagenet/policy.json'))
train_cfg = dict(max_epochs=95, val_interval=1)
param_scheduler = dict(milestones=[30, 60, 90])
custom_hooks = []
