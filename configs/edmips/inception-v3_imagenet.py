# Inception-V3, ImageNet; stem and classifier are float and not counted
_base_ = ['mmpretrain::inception_v3/inception-v3_8xb32_in1k.py', '../_base_/edmips.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/edmips/inception-v3_imagenet'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(_base_.supernet, exclude=['backbone.Conv2d_1a_3x3.conv', 'backbone.fc']),
)
train_cfg = dict(max_epochs=25, val_interval=25)
param_scheduler = dict(
    _delete_=True, type='MultiStepLR', by_epoch=True, milestones=[10, 20], gamma=0.1
)
cost = dict(type='BOPs', input_shape=(3, 299, 299))
penalty = dict(_base_.penalty, eta=0.0015, cost=cost)
custom_hooks = [dict(_base_.search, penalties=[penalty])]
