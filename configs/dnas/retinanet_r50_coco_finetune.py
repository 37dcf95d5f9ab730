# The net that retinanet_r50_coco.py found.
# Schedule (our default): 1x at half its learning rate.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/dnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/dnas/retinanet_r50_coco_finetune'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(
        policy='work_dirs/dnas/retinanet_r50_coco/policy.json',
        w_quantizer=_base_.rescaled,
        a_quantizer=_base_.a_quantizer,
        exclude=_base_.ends_of_retinanet,
    ),
)
load_from = 'work_dirs/dnas/retinanet_r50_coco/searched.pth'
optim_wrapper = dict(optimizer=dict(lr=0.005))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
