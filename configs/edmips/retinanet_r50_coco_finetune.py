# The net that retinanet_r50_coco.py found.
# Schedule (our default): 1x at half its learning rate.
_base_ = 'retinanet_r50_coco.py'
work_dir = 'work_dirs/edmips/retinanet_r50_coco_finetune'

model = dict(quant=dict(policy='work_dirs/edmips/retinanet_r50_coco/policy.json'))
load_from = 'work_dirs/edmips/retinanet_r50_coco/searched.pth'
train_cfg = dict(max_epochs=12, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.005))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
