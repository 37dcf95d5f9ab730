# The net of a policy for mobilenetv3_imagenet_phase1.py: tested as it is, or
# fine-tuned. Schedule (our default): 10 epochs from a tenth of its learning rate.
_base_ = 'mobilenetv3_imagenet_phase1.py'
work_dir = 'work_dirs/qfa/mobilenetv3_imagenet_phase1_subnet'

fixed = _base_.mobilenetv3_fixed
policy = 'work_dirs/qfa/mobilenetv3_imagenet_phase1/policy.json'
data_preprocessor = dict(type='mmmpq.SubnetClsDataPreprocessor', architecture=policy)
model = dict(
    backbone=dict(type='mmmpq.SubnetMobileNetV3', architecture=policy),
    quant=dict(_base_.subnet, _delete_=True, policy=policy, fixed=fixed),
)
load_from = 'work_dirs/qfa/mobilenetv3_imagenet_phase1/epoch_125.pth'
train_cfg = dict(max_epochs=10)
optim_wrapper = dict(optimizer=dict(lr=0.008))
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    T_max=10,
    by_epoch=True,
    convert_to_iter_based=True,
)
custom_hooks = [_base_.calibration]
