_base_ = ['../float/retinanet_shapes_float.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/retinanet_shapes'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    quant=dict(
        _base_.supernet,
        w_quantizer=_base_.rescaled,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        exclude=_base_.ends_of_retinanet,
    ),
)
load_from = 'work_dirs/retinanet_shapes_float/epoch_12.pth'
train_cfg = dict(max_epochs=6, val_interval=6)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=6, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [
    dict(
        _base_.search,
        penalties=[
            dict(
                _base_.penalty,
                cost=dict(type='BOPs', input_shape=(3, 128, 128)),
            )
        ],
    )
]
