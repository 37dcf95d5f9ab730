# The largest net of the digits supernet, alone and in float: its teacher and start
_base_ = [
    '../_base_/models/mobilenetv3_digits.py',
    '../_base_/datasets/digits.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='mmmpq.SubnetMobileNetV3', architecture='largest'),
)
max_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=max_epochs,
    by_epoch=True,
    convert_to_iter_based=True,
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_epochs),
)
randomness = dict(seed=0)
