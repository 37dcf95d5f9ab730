_base_ = ['../_base_/quantized/resnet_digits.py', '../_base_/dnas.py']
work_dir = 'work_dirs/dnas/resnet_digits'

model = dict(
    quant=dict(
        _base_.supernet,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        exclude=_base_.ends,
    )
)
cost = dict(type='BOPs', input_shape=(3, 16, 16))
custom_hooks = [dict(_base_.search, penalties=[dict(_base_.penalty, cost=cost)])]
