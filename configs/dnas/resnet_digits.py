_base_ = ['../float/resnet_digits_float.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet_digits'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        _base_.supernet,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/resnet_digits_float/epoch_20.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [
    dict(
        _base_.search,
        penalties=[
            dict(
                _base_.penalty,
                cost=dict(type='BOPs', input_shape=(3, 16, 16)),
            )
        ],
    )
]
