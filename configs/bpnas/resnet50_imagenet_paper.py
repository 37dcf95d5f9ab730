# ResNet-50, ImageNet, BOPs of uniform W3A3, as published as far as known.
# Schedule (our default): 10 epochs at a tenth of the learning rate.
_base_ = ['../_base_/quantized/resnet50_imagenet.py', '../_base_/bpnas_paper.py']

model = dict(quant=_base_.paper)
load_from = 'work_dirs/resnet50_imagenet_reshaped_float/epoch_30.pth'
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 224, 224))
custom_hooks = [dict(_base_.paper_search, budgets=[budget])]
