# Search (our default): 60 epochs at a tenth of the learning rate
_base_ = '../../float/resnet20_cifar10_float.py'

model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier')
load_from = 'work_dirs/resnet20_cifar10_float/epoch_200.pth'
train_cfg = dict(max_epochs=60, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
ends = ['backbone.conv1', 'head.fc']
