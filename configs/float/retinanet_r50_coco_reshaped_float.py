# RetinaNet-R50 with weights that are nearly uniform: the float net of BP-NAS as
# published. Schedule (our default): 1x at half its learning rate.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(backbone=dict(frozen_stages=-1, init_cfg=None))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
optim_wrapper = dict(optimizer=dict(lr=0.005))
custom_hooks = [dict(type='mmmpq.ScaleClipHook', k=2)]
