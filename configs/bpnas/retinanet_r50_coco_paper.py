# RetinaNet-R50, COCO, BOPs of uniform W4A4, as published as far as known
_base_ = ['../_base_/quantized/retinanet_r50_coco.py', '../_base_/bpnas_paper.py']

model = dict(quant=_base_.paper)
load_from = 'work_dirs/retinanet_r50_coco_reshaped_float/epoch_12.pth'
budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 800, 1333))
custom_hooks = [dict(_base_.paper_search, budgets=[budget])]
