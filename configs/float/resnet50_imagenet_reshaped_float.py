# ResNet-50 with weights that are nearly uniform: the float net of BP-NAS as published.
# Schedule (our default): 30 epochs from a tenth of the learning rate.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
train_cfg = dict(max_epochs=30)
param_scheduler = dict(milestones=[10, 20])
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmmpq.ScaleClipHook', k=2)]
