# EdMIPS (CVPR 2020, arXiv 2004.05795), the parts that its configs share, as published.
# Batch 256 is 8 processes of 32. The published penalty knows no budget; one may be
# given on top of it, as in configs/bpnas:
#   custom_hooks = [dict(_base_.search, budgets=[dict(type='BOPs', limit='W2A2')])]
candidates = [(w, a) for w in (1, 2, 3, 4) for a in (2, 3, 4)]
quantizer = dict(type='mmmpq.GaussianQuantizer')
supernet = dict(
    candidates=candidates,
    quantizer=quantizer,
    groups='layer',
    relaxation=dict(type='mmmpq.Softmax', factorised=True, init=0.01),
    mixing='composite',
    ends='fixed',
)
search = dict(
    type='mmmpq.SearchHook',
    budgets=[],
    joint=True,
    warmup=0.0,
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    scheduler=dict(type='StepLR', step_size=10, gamma=0.1, by_epoch=True),
)
penalty = dict(type='ComplexityPenalty', cost=dict(type='BOPs'), normaliser='first')

# Where nothing is published (detection, the bundled sets), our default: a short search
# from the float checkpoint, steps fitted to the inputs of layers without a BatchNorm
# before them, and about the weight that η has in ResNet-18 (.79 at W4A4).
measured = dict(quantizer, normalised=False)
short_search = dict(
    search,
    optimizer=dict(type='Adam', lr=0.05, betas=(0.5, 0.999), weight_decay=1e-4),
    scheduler=None,
)
relative_penalty = dict(penalty, eta=0.75, normaliser='uniform', uniform='W4A4')
