# The net that resnet50_imagenet.py found, from scratch.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/edmips.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/edmips/resnet50_imagenet_scratch'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        policy='work_dirs/edmips/resnet50_imagenet/policy.json',
        quantizer=_base_.quantizer,
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
train_cfg = dict(max_epochs=95)
