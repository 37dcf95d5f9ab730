# ResNet-20 with half the channels and half the resolution from its stem on
_base_ = [
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/digits_float_schedule.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmmpq.CifarResNet',
        depth=20,
        in_channels=1,
        base_channels=8,
        stem_stride=2,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=32,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)

optim_wrapper = dict(optimizer=dict(nesterov=True))
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=20),
)
randomness = dict(seed=0)
