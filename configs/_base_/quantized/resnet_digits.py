# The float net of the digits, to be quantized
_base_ = '../../float/resnet_digits_float.py'

model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier')
load_from = 'work_dirs/resnet_digits_float/epoch_20.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
ends = ['backbone.conv1', 'head.fc']
