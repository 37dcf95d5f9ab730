# ResNet-50, ImageNet, BOPs of uniform W3A3.
# Schedule (our default): 10 epochs at a tenth of the learning rate.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/bpnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=_base_.candidates,
        quantizer=_base_.quantizer,
    ),
)
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [
    dict(
        _base_.search,
        budgets=[dict(type='BOPs', limit='W3A3', input_shape=(3, 224, 224))],
    )
]
