# The float net of the shapes, to be quantized in a training of 6 epochs
_base_ = '../../float/retinanet_shapes_float.py'

model = dict(type='mmmpq.QuantModel', base_type='RetinaNet')
load_from = 'work_dirs/retinanet_shapes_float/epoch_12.pth'
train_cfg = dict(max_epochs=6, val_interval=6)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
linear, cosine = _base_.param_scheduler
param_scheduler = [linear, dict(cosine, T_max=6)]
ends = ['backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg']
