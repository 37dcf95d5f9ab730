_base_ = ['../float/resnet_digits_float.py', '../_base_/edmips.py']
work_dir = 'work_dirs/edmips/resnet_digits'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        _base_.supernet,
        quantizer=_base_.measured,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/resnet_digits_float/epoch_20.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [
    dict(
        _base_.short_search,
        penalties=[
            dict(
                _base_.relative_penalty,
                cost=dict(type='BOPs', input_shape=(3, 16, 16)),
            )
        ],
    )
]
