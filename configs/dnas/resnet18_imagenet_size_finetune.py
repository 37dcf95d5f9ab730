# The net that resnet18_imagenet_size.py found.
# Schedule (our default): 30 epochs from a tenth of the learning rate.
_base_ = 'resnet18_imagenet_size.py'
work_dir = 'work_dirs/dnas/resnet18_imagenet_size_finetune'

model = dict(quant=dict(policy='work_dirs/dnas/resnet18_imagenet_size/policy.json'))
load_from = 'work_dirs/dnas/resnet18_imagenet_size/searched.pth'
train_cfg = dict(max_epochs=30, val_interval=1)
param_scheduler = dict(milestones=[10, 20])
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
