# Phase 0, as published, from the once-for-all supernet: widths 2, 3, 4 and float.
# Batch 2048 is 8 processes of 256. Not as published: squeeze-excite has 8 bits; one
# quantizer for all kernel sizes of a depthwise convolution; a layer is float as often
# as it is W2A2, 1 in 10 (there 11 in 80).
_base_ = [
    '../_base_/models/mobilenetv3_elastic.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/qfa.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/qfa/mobilenetv3_imagenet_phase0'

data_preprocessor = dict(
    type='mmmpq.ElasticClsDataPreprocessor', sizes=list(range(128, 225, 4))
)
train_pipeline = [
    dict(_base_.train_pipeline[0]),
    dict(_base_.train_pipeline[1], crop_ratio_range=(0.08, 1.0)),
    dict(_base_.train_pipeline[2]),
    dict(type='ColorJitter', brightness=32 / 255, saturation=0.5),
    dict(_base_.train_pipeline[3]),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=256)
test_dataloader = val_dataloader

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    head=dict(dropout_rate=0.1),
    quant=dict(
        _base_.supernet,
        candidates=[*_base_.supernet.candidates, (32, 32)],
        fixed=_base_.mobilenetv3_fixed,
    ),
)
load_from = 'https://raw.githubusercontent.com/han-cai/files/master/ofa/ofa_nets/ofa_mbv3_d234_e346_k357_w1.2'

train_cfg = dict(by_epoch=True, max_epochs=65, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    _base_.optimization,
    optimizer=dict(type='SGD', lr=0.08, momentum=0.9, nesterov=True, weight_decay=3e-5),
)
by_epochs = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(by_epochs, type='LinearLR', start_factor=1 / 32, end=5),
    dict(by_epochs, type='CosineAnnealingLR', T_max=60, begin=5, end=65),
]
auto_scale_lr = dict(base_batch_size=2048)

teacher = dict(
    config='{{ fileDirname }}/../float/mobilenetv3_imagenet_float.py',
    checkpoint='work_dirs/mobilenetv3_imagenet_float/epoch_5.pth',
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
