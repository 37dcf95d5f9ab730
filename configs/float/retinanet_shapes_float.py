_base_ = [
    '../_base_/models/retinanet_shapes.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/detector_float_schedule.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=12),
)
randomness = dict(seed=0)
