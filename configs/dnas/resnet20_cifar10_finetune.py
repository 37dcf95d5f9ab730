# The net that resnet20_cifar10.py found.
# Schedule (our default): 120 epochs from a tenth of the learning rate.
_base_ = ['../float/resnet20_cifar10_float.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet20_cifar10_finetune'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/dnas/resnet20_cifar10/policy.json',
        w_quantizer=_base_.w_quantizer,
        a_quantizer=_base_.a_quantizer,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/dnas/resnet20_cifar10/searched.pth'
train_cfg = dict(max_epochs=120)
param_scheduler = dict(milestones=[60, 90])
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
