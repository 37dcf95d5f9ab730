# ResNet-18, ImageNet, BOPs of uniform W3A3.
# Schedule (our default): 10 epochs at a tenth of the learning rate.
_base_ = ['../_base_/quantized/resnet18_imagenet.py', '../_base_/bpnas.py']

model = dict(quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.01))
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 224, 224))
custom_hooks = [dict(_base_.search, budgets=[budget])]
