_base_ = ['../float/resnet_digits_float.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet_digits_finetune'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/dnas/resnet_digits/policy.json',
        w_quantizer=_base_.w_quantizer,
        a_quantizer=_base_.a_quantizer,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/dnas/resnet_digits/searched.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
