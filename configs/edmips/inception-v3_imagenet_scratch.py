# The net that inception-v3_imagenet.py found, from scratch.
_base_ = ['mmpretrain::inception_v3/inception-v3_8xb32_in1k.py', '../_base_/edmips.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/edmips/inception-v3_imagenet_scratch'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/edmips/inception-v3_imagenet/policy.json',
        quantizer=_base_.quantizer,
        exclude=['backbone.Conv2d_1a_3x3.conv', 'backbone.fc'],
    ),
)
train_cfg = dict(max_epochs=95)
param_scheduler = dict(
    _delete_=True, type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1
)
