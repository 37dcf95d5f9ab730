# ResNet-18, ImageNet; weights alone, by size. Stem and classifier are float.
# Schedule (our default): 10 epochs at a tenth of the learning rate.
_base_ = ['../_base_/quantized/resnet18_imagenet.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet18_imagenet_size'

model = dict(
    quant=dict(
        _base_.supernet,
        candidates=[(w, 32) for w in (1, 2, 4, 8, 32)],
        exclude=_base_.ends,
    )
)
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
cost = dict(type='WeightBytes')
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, cost=cost)])]
