# The net that resnet18_imagenet_compute.py found.
# Schedule (our default): 30 epochs from a tenth of the learning rate.
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../_base_/dnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/dnas/resnet18_imagenet_compute_finetune'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/dnas/resnet18_imagenet_compute/policy.json',
        w_quantizer=_base_.w_quantizer,
        a_quantizer=_base_.a_quantizer,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/dnas/resnet18_imagenet_compute/searched.pth'
train_cfg = dict(max_epochs=30)
param_scheduler = dict(milestones=[10, 20])
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
