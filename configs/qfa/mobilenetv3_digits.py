# The once-for-all MobileNetV3 in small, elastic in architecture, resolution and bits
_base_ = ['../float/mobilenetv3_digits_float.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/mobilenetv3_digits'

float_net = 'work_dirs/mobilenetv3_digits_float/epoch_20.pth'
data_preprocessor = dict(type='mmmpq.ElasticClsDataPreprocessor', sizes=[12, 14, 16])
# The feature mix layer is searched like the others; squeeze-excite has our 8 bits.
fixed = {
    'backbone.stem.conv': (32, 32),
    'head.layers.0.fc': None,
    '*.se.*': (8, 8),
}
model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    backbone=dict(_base_.backbone, _delete_=True),
    quant=dict(_base_.supernet, fixed=fixed),
)
load_from = float_net
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
param_scheduler = dict(T_max=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=0.02, nesterov=True),
    paramwise_cfg=_base_.no_decay,
    clip_grad=dict(max_norm=500),
)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
custom_hooks = [
    dict(
        _base_.training,
        teacher=dict(
            config='{{ fileDirname }}/../float/mobilenetv3_digits_float.py',
            checkpoint=float_net,
        ),
    )
]
