_base_ = ['../_base_/quantized/retinanet_shapes.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/retinanet_shapes'

model = dict(
    quant=dict(
        _base_.supernet,
        w_quantizer=_base_.rescaled,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        exclude=_base_.ends,
    )
)
cost = dict(type='BOPs', input_shape=(3, 128, 128))
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, cost=cost)])]
