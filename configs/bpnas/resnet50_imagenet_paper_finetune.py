# The net that resnet50_imagenet_paper.py found.
# Schedule (our default): 30 epochs from a tenth of the learning rate.
_base_ = 'resnet50_imagenet_paper.py'

model = dict(quant=dict(policy='work_dirs/resnet50_imagenet_paper/policy.json'))
load_from = 'work_dirs/resnet50_imagenet_paper/searched.pth'
train_cfg = dict(max_epochs=30, val_interval=1)
param_scheduler = dict(milestones=[10, 20])
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
