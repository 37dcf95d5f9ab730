# ResNet-50 with BatchNorms in front, as published, ImageNet, from scratch; stem and
# classifier are float and not counted
_base_ = ['../_base_/quantized/resnet50_imagenet.py', '../_base_/edmips.py']
work_dir = 'work_dirs/edmips/resnet50_imagenet'

model = dict(
    backbone=dict(type='mmmpq.PreActResNet'),
    quant=dict(_base_.supernet, exclude=_base_.ends),
)
load_from = None
train_cfg = dict(max_epochs=25, val_interval=25)
param_scheduler = dict(milestones=[10, 20])
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, eta=0.00015)])]
