_base_ = ['../float/resnet_digits_float.py', '../_base_/edmips.py']
work_dir = 'work_dirs/edmips/resnet_digits_finetune'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/edmips/resnet_digits/policy.json',
        quantizer=_base_.measured,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/edmips/resnet_digits/searched.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
