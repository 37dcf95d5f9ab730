# DNAS (2018, arXiv 1812.00090), the parts that its configs share. Temperature, beta and
# gamma, the optimizer, the warm-up and the number of samples are our defaults. The
# penalty knows no budget; one may be given on top of it, as in configs/bpnas:
#   custom_hooks = [
#       dict(_base_.search, budgets=[dict(type='WeightBytes', limit='W2A32')]),
#   ]
w_quantizer = dict(type='mmmpq.DoReFaQuantizer')
a_quantizer = dict(type='mmmpq.PACTQuantizer')
# For detectors, whose layers have no BatchNorm behind them, or a frozen one (ours).
rescaled = dict(w_quantizer, rescale=True)
supernet = dict(
    w_quantizer=w_quantizer,
    a_quantizer=a_quantizer,
    relaxation=dict(type='mmmpq.GumbelSoftmax', temperature=5.0, anneal=0.025),
    mixing='outputs',
    own_weights=True,
    ends='fixed',
)
search = dict(
    type='mmmpq.SearchHook',
    budgets=[],
    held_out=0.2,
    warmup=0.1,
    optimizer=dict(type='Adam', lr=0.05, betas=(0.5, 0.999)),
    samples=6,
)
penalty = dict(type='CostAwareLoss', beta=0.1, gamma=0.9)
