# The pretrained net on images that it labelled itself; nothing is trained
_base_ = [
    '../_base_/models/efficientnet-lite0.py',
    '../_base_/datasets/crops.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

load_from = 'data/lite0/efficientnet-lite0.pth'
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-5)
)
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=1, by_epoch=True, convert_to_iter_based=True
)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
