# The net that faster-rcnn_r50_coco.py found.
# Schedule (our default): 1x at half its learning rate.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/bpnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='FasterRCNN',
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(
        policy='work_dirs/faster-rcnn_r50_coco/policy.json',
        quantizer=_base_.quantizer,
    ),
)
load_from = 'work_dirs/faster-rcnn_r50_coco/searched.pth'
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
