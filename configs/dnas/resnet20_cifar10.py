# ResNet-20, CIFAR-10; weights alone, a choice a block; 0 bits skip a block that keeps
# the shape of its input. Stem and classifier are float.
_base_ = ['../_base_/quantized/resnet20_cifar10.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet20_cifar10'

model = dict(
    quant=dict(
        _base_.supernet,
        candidates=[(0, 0), *((w, 32) for w in (1, 2, 3, 4, 8, 32))],
        exclude=_base_.ends,
    )
)
cost = dict(type='WeightBytes', input_shape=(3, 32, 32))
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, cost=cost)])]
