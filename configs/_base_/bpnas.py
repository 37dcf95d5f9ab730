# BP-NAS, the parts that its configs share. All values are our defaults: the paper
# (2020, arXiv 2007.10026) publishes none of them.
candidates = [
    (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4), (4, 6), (6, 4), (6, 6),
    (8, 8),
]  # fmt: skip
quantizer = dict(type='mmmpq.LinearQuantizer', range='learned')
search = dict(
    type='mmmpq.SearchHook',
    penalties=[
        dict(type='BarrierPenalty', mu=0.01),
        dict(type='Prob1Regularizer', weight=0.5, ramp=(0.6, 0.9)),
    ],
    optimizer=dict(type='Adam', lr=0.1, betas=(0.5, 0.999)),
)
