_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/bpnas.py']

model = dict(quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer))
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 128, 128))
custom_hooks = [dict(_base_.search, budgets=[budget])]
