# The backbone starts from ImageNet (tools/dataset_converters/lite0.py): classes are
# learned from few cut-outs
_base_ = 'retinanet_stamps_float.py'

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(
        _delete_=True,
        type='mmmpq.EfficientNetLite0',
        out_indices=(2, 3, 4, 5),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/lite0/efficientnet-lite0.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[24, 40, 112, 320]),
)
train_cfg = dict(max_epochs=8, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [_base_.linear, dict(_base_.cosine, T_max=8)]
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1))
