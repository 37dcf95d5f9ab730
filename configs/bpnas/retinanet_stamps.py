_base_ = ['../float/retinanet_stamps_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer),
)
load_from = 'work_dirs/retinanet_stamps_float/epoch_16.pth'
train_cfg = dict(max_epochs=3, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [_base_.linear, dict(_base_.cosine, T_max=3)]
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 128, 128))
custom_hooks = [dict(_base_.search, budgets=[budget])]
