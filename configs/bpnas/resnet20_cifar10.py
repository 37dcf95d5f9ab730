# ResNet-20, CIFAR-10, BOPs of uniform W3A3
_base_ = ['../_base_/quantized/resnet20_cifar10.py', '../_base_/bpnas.py']

model = dict(quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer))
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 32, 32))
custom_hooks = [dict(_base_.search, budgets=[budget])]
