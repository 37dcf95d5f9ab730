# ResNet-18, ImageNet, elastic in its bits alone.
# Schedule (our default): 30 epochs at a tenth of the learning rate.
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../_base_/qfa.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/qfa/resnet18_imagenet'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(_base_.supernet, fixed=_base_.float_stem),
)
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
train_cfg = dict(max_epochs=30, val_interval=10)
param_scheduler = dict(milestones=[10, 20])
optim_wrapper = dict(
    optimizer=dict(lr=0.01, nesterov=True),
    paramwise_cfg=_base_.no_decay,
    clip_grad=dict(max_norm=500),
)
custom_hooks = [
    dict(
        _base_.training,
        teacher=dict(
            config='mmpretrain::resnet/resnet18_8xb32_in1k.py', checkpoint=load_from
        ),
    )
]
