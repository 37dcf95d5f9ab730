# The largest net of the digits supernet, alone and in float: its teacher and start
_base_ = [
    '../_base_/models/mobilenetv3_digits.py',
    '../_base_/datasets/digits.py',
    '../_base_/digits_float_schedule.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='mmmpq.SubnetMobileNetV3', architecture='largest'),
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=20),
)
randomness = dict(seed=0)
