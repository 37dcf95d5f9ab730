_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_shapes'

model = dict(quant=dict(_base_.supernet, fixed=_base_.float_stem))
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [_base_.linear, dict(_base_.cosine, T_max=3)]
default_hooks = dict(checkpoint=dict(interval=3))
optim_wrapper = dict(_base_.optimization, clip_grad=dict(max_norm=60))  # six passes
teacher = dict(
    config='{{ fileDirname }}/../float/retinanet_shapes_float.py',
    checkpoint=_base_.load_from,
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
