_base_ = ['../_base_/quantized/resnet_digits.py', '../_base_/bpnas.py']

model = dict(quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer))
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 16, 16))
custom_hooks = [dict(_base_.search, budgets=[budget])]
