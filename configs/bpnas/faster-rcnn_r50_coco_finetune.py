# The net that faster-rcnn_r50_coco.py found.
# Schedule (our default): 1x at half its learning rate.
_base_ = 'faster-rcnn_r50_coco.py'

model = dict(quant=dict(policy='work_dirs/faster-rcnn_r50_coco/policy.json'))
load_from = 'work_dirs/faster-rcnn_r50_coco/searched.pth'
train_cfg = dict(max_epochs=12, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.CalibrationHook')]
