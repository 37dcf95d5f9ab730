# ResNet-20, CIFAR-10, BOPs of uniform W3A3.
# Schedule (our default): 60 epochs at a tenth of the learning rate.
_base_ = ['../float/resnet20_cifar10_float.py', '../_base_/bpnas.py']

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=_base_.candidates,
        quantizer=_base_.quantizer,
    ),
)
load_from = 'work_dirs/resnet20_cifar10_float/epoch_200.pth'
train_cfg = dict(max_epochs=60, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [
    dict(
        _base_.search,
        budgets=[dict(type='BOPs', limit='W3A3', input_shape=(3, 32, 32))],
    )
]
