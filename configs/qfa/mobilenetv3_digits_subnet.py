# The net of a policy for mobilenetv3_digits.py: tested as it is, or fine-tuned
_base_ = 'mobilenetv3_digits.py'
work_dir = 'work_dirs/qfa/mobilenetv3_digits_subnet'

fixed = _base_.mobilenetv3_fixed
policy = 'work_dirs/qfa/mobilenetv3_digits/policy.json'
data_preprocessor = dict(type='mmmpq.SubnetClsDataPreprocessor', architecture=policy)
model = dict(
    backbone=dict(type='mmmpq.SubnetMobileNetV3', architecture=policy),
    quant=dict(_base_.subnet, _delete_=True, policy=policy, fixed=fixed),
)
load_from = 'work_dirs/qfa/mobilenetv3_digits/epoch_30.pth'
max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(T_max=max_epochs)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
custom_hooks = [_base_.calibration]
