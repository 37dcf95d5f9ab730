# The net of a policy for retinanet_r50_coco.py: tested as it is, or fine-tuned
_base_ = ['../_base_/quantized/retinanet_r50_coco.py', '../_base_/qfa.py']
work_dir = 'work_dirs/qfa/retinanet_r50_coco_subnet'

policy = 'work_dirs/qfa/retinanet_r50_coco/policy.json'
model = dict(quant=dict(_base_.subnet, policy=policy, fixed=_base_.float_stem))
load_from = 'work_dirs/qfa/retinanet_r50_coco/epoch_12.pth'
optim_wrapper = dict(paramwise_cfg=_base_.no_decay)
custom_hooks = [_base_.calibration]
