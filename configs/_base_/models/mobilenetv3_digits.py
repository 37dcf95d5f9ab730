# The once-for-all MobileNetV3 for images of 16 px, small enough to train in minutes
backbone = dict(
    type='mmmpq.ElasticMobileNetV3',
    depths=(1, 2),
    kernels=(3, 5),
    expands=(3, 4, 6),
    stem=(8, 1),
    first=(8, 1),
    stages=(
        (16, 2, False, 'ReLU'),
        (24, 2, True, 'HSwish'),
        (32, 1, True, 'HSwish'),
    ),
    last=96,
)
model = dict(
    type='ImageClassifier',
    backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=96,
        mid_channels=[128],
        act_cfg=dict(type='HSwish'),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
