# BP-NAS as published, as far as we know (2020, arXiv 2007.10026): a float net that was
# trained with reshaped weights (configs/float/*_reshaped_float.py), clip ranges of
# Scale-Clip, one softmax over the pairs of a block, their outputs mixed, a start inside
# the budget, Prob-1 from the first step, stem and prediction layers at 8/8. Not
# published, so our defaults: candidates, μ, λ, the start, the optimizer of the logits.
_base_ = 'bpnas.py'

paper = dict(
    candidates=_base_.candidates,
    quantizer=dict(type='mmmpq.LinearQuantizer', range='scale_clip'),
    groups='residual_block',
    mixing='outputs',
    ends='fixed',
)
paper_search = dict(
    _base_.search,
    penalties=[
        dict(type='BarrierPenalty', mu=0.01),
        dict(type='Prob1Regularizer', weight=0.5, ramp=(0.0, 0.0)),
    ],
    start='biased',
)
