# RetinaNet-R50, COCO, elastic in its bits alone.
# Schedule (our default): 1x at a tenth of its learning rate.
_base_ = ['../_base_/quantized/retinanet_r50_coco.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_r50_coco'

model = dict(quant=dict(_base_.supernet, fixed=_base_.float_stem))
train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = _base_.optimization
teacher = dict(
    config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    checkpoint=_base_.load_from,
)
custom_hooks = [dict(_base_.training, teacher=teacher)]
