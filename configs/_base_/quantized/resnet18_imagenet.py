_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier')
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
ends = ['backbone.conv1', 'head.fc']
