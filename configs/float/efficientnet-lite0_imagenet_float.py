# To test the weights that tools/dataset_converters/lite0.py fetches
_base_ = [
    '../_base_/models/efficientnet-lite0.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

data_preprocessor = dict(mean=[127.0] * 3, std=[128.0] * 3)
load_from = 'data/lite0/efficientnet-lite0.pth'
