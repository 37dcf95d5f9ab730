# RetinaNet-R50, COCO; stem and prediction layers are float
_base_ = ['../_base_/quantized/retinanet_r50_coco.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/retinanet_r50_coco'

model = dict(
    quant=dict(
        _base_.supernet,
        w_quantizer=_base_.rescaled,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        own_weights=False,  # a copy a candidate is too much memory here
        exclude=_base_.ends,
    )
)
cost = dict(type='BOPs', input_shape=(3, 800, 1333))
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, cost=cost)])]
