# RetinaNet-R50, COCO, BOPs of uniform W4A4
_base_ = ['../_base_/quantized/retinanet_r50_coco.py', '../_base_/bpnas.py']

model = dict(quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer))
budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 800, 1333))
custom_hooks = [dict(_base_.search, budgets=[budget])]
