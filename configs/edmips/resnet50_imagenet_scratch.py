# The net that resnet50_imagenet.py found, from scratch
_base_ = 'resnet50_imagenet.py'
work_dir = 'work_dirs/edmips/resnet50_imagenet_scratch'

model = dict(quant=dict(policy='work_dirs/edmips/resnet50_imagenet/policy.json'))
train_cfg = dict(max_epochs=95, val_interval=1)
param_scheduler = dict(milestones=[30, 60, 90])
custom_hooks = []
