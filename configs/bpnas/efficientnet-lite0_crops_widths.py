# For mmmpq ptq: each layer for itself, all widths from 2 to 6 bits, and 8
_base_ = 'efficientnet-lite0_crops.py'

model = dict(
    quant=dict(
        _delete_=True,
        candidates=[(w, a) for w in (2, 3, 4, 5, 6, 8) for a in (3, 4, 5, 6, 8)],
        groups='layer',
        w_quantizer=dict(type='mmmpq.LinearQuantizer', per_channel=True),
        a_quantizer=dict(type='mmmpq.LSQPlusQuantizer'),
    )
)
