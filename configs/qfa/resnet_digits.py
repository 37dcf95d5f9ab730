_base_ = ['../float/resnet_digits_float.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/resnet_digits'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(_base_.supernet, fixed=_base_.float_stem),
)
load_from = 'work_dirs/resnet_digits_float/epoch_20.pth'
optim_wrapper = dict(
    optimizer=dict(lr=0.02, nesterov=True),
    paramwise_cfg=_base_.no_decay,
    clip_grad=dict(max_norm=500),
)
custom_hooks = [
    dict(
        _base_.training,
        teacher=dict(
            config='{{ fileDirname }}/../float/resnet_digits_float.py',
            checkpoint=load_from,
        ),
    )
]
