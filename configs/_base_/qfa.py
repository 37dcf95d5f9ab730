# BatchQuant / QFA (NeurIPS 2021, arXiv 2105.08952), the parts that its configs share:
# quantizers, widths and passes as published. One training, then any policy of these
# widths; where nothing is published (nets that are elastic in their bits alone,
# detection, the bundled sets) the schedules are our default: a float checkpoint and a
# short training.
w_quantizer = dict(type='mmmpq.LSQQuantizer')
a_quantizer = dict(type='mmmpq.BatchQuantizer')
supernet = dict(
    w_quantizer=w_quantizer,
    a_quantizer=a_quantizer,
    candidates=[(w, a) for w in (2, 3, 4) for a in (2, 3, 4)],
    groups='layer',
    relaxation=dict(type='mmmpq.UniformSampling'),
    mixing='sampled',
    ends='fixed',
)
# What the net of a policy keeps of it.
subnet = dict(w_quantizer=w_quantizer, a_quantizer=a_quantizer)
calibration = dict(type='mmmpq.CalibrationHook', batches=30)
# The first convolution is float; the classifier, at least at 8 bits, is at our 8/8.
float_stem = {'backbone.conv1': (32, 32)}
# The feature mix layer is searched like the others; squeeze-excite has our 8 bits.
mobilenetv3_fixed = {
    'backbone.stem.conv': (32, 32),
    'head.layers.0.fc': None,
    '*.se.*': (8, 8),
}
training = dict(type='mmmpq.SandwichHook', random=4, distill=1.0)
no_decay = dict(
    custom_keys={'quantizer': dict(decay_mult=0.0)},
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
)
optimization = dict(paramwise_cfg=no_decay, clip_grad=dict(max_norm=500))
