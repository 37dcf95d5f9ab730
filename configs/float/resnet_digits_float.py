_base_ = [
    '../_base_/models/resnet_digits.py',
    '../_base_/datasets/digits.py',
    '../_base_/digits_float_schedule.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=20),
)
randomness = dict(seed=0)
