_base_ = [
    '../_base_/models/retinanet_shapes.py',
    '../_base_/datasets/stamps_detection.py',
    '../_base_/detector_float_schedule.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(bbox_head=dict(num_classes=7))

train_cfg = dict(max_epochs=16)
train_dataloader = dict(batch_size=16)
linear, cosine = _base_.param_scheduler
param_scheduler = [linear, dict(cosine, T_max=16)]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=16),
)
randomness = dict(seed=0)
