# EfficientNet-Lite0 on unlabelled crops, towards the float net's classes
_base_ = ['../float/efficientnet-lite0_crops_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=_base_.candidates,
        quantizer=_base_.quantizer,
        # The channels of depthwise layers differ widely.
        w_quantizer=dict(_base_.quantizer, per_channel=True),
    ),
)
custom_hooks = [
    dict(
        _base_.search,
        budgets=[dict(type='BOPs', limit='W4A4', input_shape=(3, 224, 224))],
    )
]
