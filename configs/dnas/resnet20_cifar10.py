# ResNet-20, CIFAR-10; weights alone, a choice a block; 0 bits skip a block that keeps
# the shape of its input. Stem and classifier are float.
# Schedule (our default): 60 epochs at a tenth of the learning rate.
_base_ = ['../float/resnet20_cifar10_float.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet20_cifar10'

model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        _base_.supernet,
        candidates=[
            (0, 0),
            (1, 32),
            (2, 32),
            (3, 32),
            (4, 32),
            (8, 32),
            (32, 32),
        ],
        exclude=['backbone.conv1', 'head.fc'],
    ),
)
load_from = 'work_dirs/resnet20_cifar10_float/epoch_200.pth'
train_cfg = dict(max_epochs=60, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [
    dict(
        _base_.search,
        penalties=[
            dict(
                _base_.penalty,
                cost=dict(type='WeightBytes', input_shape=(3, 32, 32)),
            )
        ],
    )
]
