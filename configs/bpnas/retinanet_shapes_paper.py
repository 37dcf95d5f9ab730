_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/bpnas_paper.py']

model = dict(quant=_base_.paper)
load_from = 'work_dirs/retinanet_shapes_reshaped_float/epoch_12.pth'
budget = dict(type='BOPs', limit='W3A3', input_shape=(3, 128, 128))
custom_hooks = [dict(_base_.paper_search, budgets=[budget])]
