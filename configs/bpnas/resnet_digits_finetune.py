_base_ = ['../float/resnet_digits_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/resnet_digits/policy.json',
        quantizer=_base_.quantizer,
    ),
)
load_from = 'work_dirs/resnet_digits/searched.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
