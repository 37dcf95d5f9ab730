# Unlabelled crops of photographs, and composites on them, of 224 px, made by
# tools/dataset_converters/stamps.py --size 224 --train 5000 --test 5000 --objects 0 5
#     --out data/crops
# Their labels are a float net's classes (benchmarks/agreement.py): the accuracy is the
# agreement with it.
data_preprocessor = dict(
    num_classes=1000, mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/crops',
        ann_file='train.txt',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/crops',
        ann_file='test.txt',
        data_prefix='test',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
