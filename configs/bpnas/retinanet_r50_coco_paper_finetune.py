# The net that retinanet_r50_coco_paper.py found.
# Schedule (our default): 1x at half its learning rate.
_base_ = 'retinanet_r50_coco_paper.py'

model = dict(quant=dict(policy='work_dirs/retinanet_r50_coco_paper/policy.json'))
load_from = 'work_dirs/retinanet_r50_coco_paper/searched.pth'
train_cfg = dict(max_epochs=12, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.005))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
