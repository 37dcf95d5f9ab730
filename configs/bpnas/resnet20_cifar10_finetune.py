# The net that resnet20_cifar10.py found.
# Schedule (our default): 120 epochs from a tenth of the learning rate.
_base_ = 'resnet20_cifar10.py'

model = dict(quant=dict(policy='work_dirs/resnet20_cifar10/policy.json'))
load_from = 'work_dirs/resnet20_cifar10/searched.pth'
train_cfg = dict(max_epochs=120, val_interval=1)
param_scheduler = dict(milestones=[60, 90])
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
