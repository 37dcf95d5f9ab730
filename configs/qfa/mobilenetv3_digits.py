# The once-for-all MobileNetV3 in small, elastic in architecture, resolution and bits
_base_ = ['../float/mobilenetv3_digits_float.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/mobilenetv3_digits'

data_preprocessor = dict(type='mmmpq.ElasticClsDataPreprocessor', sizes=[12, 14, 16])
model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    backbone=dict(_base_.backbone, _delete_=True),
    quant=dict(_base_.supernet, fixed=_base_.mobilenetv3_fixed),
)
load_from = 'work_dirs/mobilenetv3_digits_float/epoch_20.pth'
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
param_scheduler = dict(T_max=max_epochs)
optim_wrapper = dict(_base_.optimization, optimizer=dict(lr=0.02, nesterov=True))
default_hooks = dict(checkpoint=dict(interval=max_epochs))
teacher = dict(
    config='{{ fileDirname }}/../float/mobilenetv3_digits_float.py',
    checkpoint=load_from,
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
