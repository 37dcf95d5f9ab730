# ResNet-50, ImageNet; stem and classifier are float and not counted.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/edmips.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/edmips/resnet50_imagenet'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(_base_.supernet, exclude=['backbone.conv1', 'head.fc']),
)
train_cfg = dict(max_epochs=25, val_interval=25)
param_scheduler = dict(milestones=[10, 20])
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, eta=0.00015)])]
