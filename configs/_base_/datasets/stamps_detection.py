# Made by tools/dataset_converters/stamps.py: 3000 + 2000 images of 128 px
_base_ = 'shapes_detection.py'

data_root = 'data/stamps/'
stamps = dict(type='mmmpq.StampsDataset', data_root=data_root)
test_set = dict(
    stamps,
    ann_file='annotations/instances_test.json',
    data_prefix=dict(img='test/'),
)
train_dataloader = dict(dataset=stamps)
val_dataloader = dict(dataset=test_set)
test_dataloader = dict(dataset=test_set)

val_evaluator = dict(ann_file=data_root + 'annotations/instances_test.json')
test_evaluator = val_evaluator
