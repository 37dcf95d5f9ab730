_base_ = ['../float/resnet_digits_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=_base_.candidates,
        quantizer=_base_.quantizer,
    ),
)
load_from = 'work_dirs/resnet_digits_float/epoch_20.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [
    dict(
        _base_.search,
        budgets=[dict(type='BOPs', limit='W3A3', input_shape=(3, 16, 16))],
    )
]
