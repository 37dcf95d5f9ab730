# The largest net of the once-for-all supernet, in float: the teacher. The statistics
# of the published weights are those of many nets: a short training of this one (ours).
_base_ = [
    '../_base_/models/mobilenetv3_elastic.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(backbone=dict(type='mmmpq.SubnetMobileNetV3', architecture='largest'))
load_from = 'https://raw.githubusercontent.com/han-cai/files/master/ofa/ofa_nets/ofa_mbv3_d234_e346_k357_w1.2'

train_dataloader = dict(batch_size=256)
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(
        type='SGD', lr=0.008, momentum=0.9, nesterov=True, weight_decay=3e-5
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=5, by_epoch=True, convert_to_iter_based=True
)
auto_scale_lr = dict(base_batch_size=2048)
