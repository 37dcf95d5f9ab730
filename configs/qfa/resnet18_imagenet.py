# ResNet-18, ImageNet, elastic in its bits alone.
# Schedule (our default): 30 epochs at a tenth of the learning rate.
_base_ = ['../_base_/quantized/resnet18_imagenet.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/resnet18_imagenet'

model = dict(quant=dict(_base_.supernet, fixed=_base_.float_stem))
train_cfg = dict(max_epochs=30, val_interval=10)
param_scheduler = dict(milestones=[10, 20])
optim_wrapper = dict(_base_.optimization, optimizer=dict(lr=0.01, nesterov=True))
teacher = dict(
    config='mmpretrain::resnet/resnet18_8xb32_in1k.py',
    checkpoint=_base_.load_from,
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
