# The net that resnet50_imagenet.py found.
# Schedule (our default): 30 epochs from a tenth of the learning rate.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/bpnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/resnet50_imagenet/policy.json',
        quantizer=_base_.quantizer,
    ),
)
load_from = 'work_dirs/resnet50_imagenet/searched.pth'
train_cfg = dict(max_epochs=30)
param_scheduler = dict(milestones=[10, 20])
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
