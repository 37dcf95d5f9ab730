# A small ResNet-20, Fashion-MNIST, BOPs of uniform W3A3
_base_ = ['../float/resnet20_fashion_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer),
)
load_from = 'work_dirs/resnet20_fashion_float/epoch_20.pth'
train_cfg = dict(max_epochs=2, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = dict(T_max=2)
custom_hooks = [
    dict(
        _base_.search,
        budgets=[dict(type='BOPs', limit='W3A3', input_shape=(1, 28, 28))],
    )
]
