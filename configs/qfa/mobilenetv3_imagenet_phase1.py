# Phase 1, as published, from phase 0: widths 2, 3 and 4
_base_ = 'mobilenetv3_imagenet_phase0.py'
work_dir = 'work_dirs/qfa/mobilenetv3_imagenet_phase1'

model = dict(quant=dict(candidates=_base_.supernet.candidates))
load_from = 'work_dirs/qfa/mobilenetv3_imagenet_phase0/epoch_65.pth'
train_cfg = dict(max_epochs=125)
param_scheduler = [
    dict(_base_.param_scheduler[0]),
    dict(_base_.param_scheduler[1], T_max=120, end=125),
]
