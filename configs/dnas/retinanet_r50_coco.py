# RetinaNet-R50, COCO; stem and prediction layers are float.
# Schedule (our default): 4 epochs at a tenth of the 1x learning rate.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/dnas.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
work_dir = 'work_dirs/dnas/retinanet_r50_coco'

model = dict(
    type='mmmpq.QuantModel',
    base_type='RetinaNet',
    # Layers that lose bits have to learn: none is frozen. The checkpoint below brings
    # the backbone too.
    backbone=dict(frozen_stages=-1, init_cfg=None),
    quant=dict(
        _base_.supernet,
        w_quantizer=_base_.rescaled,
        candidates=[(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)],
        own_weights=False,  # a copy a candidate is too much memory here
        exclude=_base_.ends_of_retinanet,
    ),
)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=0.001))
custom_hooks = [
    dict(
        _base_.search,
        penalties=[
            dict(
                _base_.penalty,
                cost=dict(type='BOPs', input_shape=(3, 800, 1333)),
            )
        ],
    )
]
