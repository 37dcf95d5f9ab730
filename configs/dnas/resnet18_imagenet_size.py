# ResNet-18, ImageNet; weights alone, by size. Stem and classifier are float.
# Schedule (our default): 10 epochs at a tenth of the learning rate.
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../_base_/dnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/dnas/resnet18_imagenet_size'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        _base_.supernet,
        candidates=[(1, 32), (2, 32), (4, 32), (8, 32), (32, 32)],
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [
    dict(_base_.search, penalties=[dict(_base_.penalty, cost=dict(type='WeightBytes'))])
]
