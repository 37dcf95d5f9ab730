# Once-for-all MobileNetV3 (2020, arXiv 1908.09791) at width 1.2, as in BatchQuant
# (2021, arXiv 2105.08952). A config on top of it makes the resolution elastic:
#   data_preprocessor = dict(type='mmmpq.ElasticClsDataPreprocessor', sizes=...)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmmpq.ElasticMobileNetV3', width_mult=1.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        in_channels=1152,
        mid_channels=[1536],
        act_cfg=dict(type='HSwish'),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='Normal', layer='Linear', mean=0.0, std=0.01, bias=0.0),
        topk=(1, 5),
    ),
)
