_base_ = ['../_base_/quantized/resnet_digits.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/resnet_digits'

model = dict(quant=dict(_base_.supernet, fixed=_base_.float_stem))
optim_wrapper = dict(_base_.optimization, optimizer=dict(lr=0.02, nesterov=True))
teacher = dict(
    config='{{ fileDirname }}/../float/resnet_digits_float.py',
    checkpoint=_base_.load_from,
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
