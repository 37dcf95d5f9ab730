_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/edmips.py']
work_dir = 'work_dirs/edmips/retinanet_shapes'

model = dict(
    quant=dict(_base_.supernet, quantizer=_base_.measured, exclude=_base_.ends)
)
cost = dict(type='BOPs', input_shape=(3, 128, 128))
penalty = dict(_base_.relative_penalty, cost=cost)
custom_hooks = [dict(_base_.short_search, penalties=[penalty])]
