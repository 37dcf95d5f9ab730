# FCN-R50 (dilated), Cityscapes, BOPs of uniform W4A4 at the size of its crops.
# Schedule (our default): a quarter of the base's iterations at a tenth of its learning
# rate.
_base_ = [
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    '../_base_/bpnas.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='EncoderDecoder',
    pretrained=None,  # the checkpoint below brings the backbone too
    quant=dict(candidates=_base_.candidates, quantizer=_base_.quantizer),
)
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/fcn/fcn_r50-d8_512x1024_40k_cityscapes/fcn_r50-d8_512x1024_40k_cityscapes_20200604_192608-efe53f0d.pth'
train_cfg = dict(max_iters=10000, val_interval=10000)
optim_wrapper = dict(optimizer=dict(lr=0.001))
poly = dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=10000, by_epoch=False)
param_scheduler = [poly]
budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 512, 1024))
custom_hooks = [dict(_base_.search, budgets=[budget])]
