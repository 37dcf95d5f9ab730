"""Every argument of every registered part is checked when the part is built."""

import math

import pytest
from mmengine.registry import HOOKS
from torch import nn

from mmmpq import Search, quantize
from mmmpq.engine.hooks import CalibrationHook, SearchHook
from mmmpq.layers import Softmax
from mmmpq.policy import Precision
from mmmpq.registry import LOSSES, QUANTIZERS, RELAXATIONS, build

BUDGETS = ['W3A3']
SEARCH = {  # key: (what is wrong, what is said)
    'budgets': [5, 'W3A3', [5], [None], dict(type='BOPs')],
    'penalties': [3, [3], dict(type='BarrierPenalty'), 'BarrierPenalty'],
    'optimizer': [
        3, 'Adam', dict(lr=0.1), dict(type='Adma'), dict(type='Adam', lr='fast'),
        dict(type='Adam', lr=-1), dict(type='SGD', lr=0.1, mometum=0.9),
    ],
    'scheduler': [
        3, 'StepLR', dict(step_size=2), dict(type='Step'), dict(type='StepLR'),
        dict(type='StepLR', stepsize=2), dict(type='MultiStepLR', milestones=3),
    ],
    'clip_grad': [5, dict(maxnorm=5), dict(max_norm='x'), dict(type='vlaue')],
    'held_out': ['half', 0, 1, 1.5, -0.1, True, math.nan, [0.2]],
    'warmup': ['x', -0.1, 1, 1.5, math.nan, True, None],
    'interval': [1.5, 0, -1, 'x', True, None, math.inf],
    'joint': ['yes', 1, None],
    'start': ['bias', 3, None],
    'margin': [math.nan, math.inf, -0.1, 1.0, 'x', True],
    'continuation': [math.nan, 0.05, 1.1, 'x', None],
    'calibration': [-1, 0, 2.5, 'two', True, None],
    'measure': ['two', -1, 1.5, None, True],
    'samples': [-1, 'x', 1.5, None],
}  # fmt: skip
OTHERS = {
    'mmmpq.CalibrationHook': dict(
        batches=[0, -1, 2.5, 'x', True, None], batchnorm=['no', 1, None]
    ),
    'mmmpq.SandwichHook': dict(
        random=[-1, 1.5, 'x'], one_precision=['x', 1], free=['*', 3, [3]],
        teacher=[3, 'x'], distill=[-1, math.nan, 'x'], match=[3, 'head'],
        calibration=[0, 1.5],
    ),
    'mmmpq.ScaleClipHook': dict(k=[0, -1, 'x', math.nan, True]),
}  # fmt: skip


@pytest.mark.parametrize(('key', 'values'), SEARCH.items())
def test_search_hook(key, values):
    for value in values:
        config = dict(type='mmmpq.SearchHook', budgets=BUDGETS)
        with pytest.raises(ValueError, match=rf'SearchHook\.{key}.*: found'):
            HOOKS.build({**config, key: value})


@pytest.mark.parametrize(('kind', 'arguments'), OTHERS.items())
def test_other_hooks(kind, arguments):
    for key, values in arguments.items():
        for value in values:
            with pytest.raises(ValueError, match=rf'{kind[6:]}\.{key}: found'):
                HOOKS.build({'type': kind, key: value})


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='mmmpq.SearchHook', heldout=0.5), "Hook: .*'heldout'; .*held_out"),
        (dict(type='mmmpq.CalibrationHook', batchez=2), "'batchez'; near .*batches"),
        (dict(type='mmmpq.SandwichHook', randon=2), "'randon'; near names: random"),
        (
            dict(type='mmmpq.ScaleClipHook', kk=2),
            "'kk'; near names: k",
        ),
        (dict(type='mmmpq.FiniteLossHook', k=2), "FiniteLossHook: unknown key 'k'"),
    ],
)
def test_unknown_keys_of_hooks(config, message):
    with pytest.raises(KeyError, match=message):
        HOOKS.build(config)


@pytest.mark.parametrize(
    ('registry', 'config', 'message'),
    [
        (LOSSES, dict(type='BarrierPenalty', mue=1), "'mue'; near names: mu"),
        (LOSSES, dict(type='Prob1Regularizer', rnge=1), "'rnge'; near names:.*ramp"),
        (LOSSES, dict(type='CostAwareLoss', gama=1), "'gama'; near names: gamma"),
        (LOSSES, dict(type='ComplexityPenalty', etta=1), "'etta'; near names: eta"),
        (RELAXATIONS, dict(type='Softmax', temprature=1), "'temprature'.*temperature"),
        (RELAXATIONS, dict(type='GumbelSoftmax', aneal=1), "GumbelS.*'aneal'.*anneal"),
        (RELAXATIONS, dict(type='GumbelSoftmax', dropp=1), "GumbelS.*'dropp'.*drop"),
        (QUANTIZERS, dict(type='LinearQuantizer', rnge=1), "'rnge'; near names: range"),
        (QUANTIZERS, dict(type='LSQQuantizer', perchannel=1), "'perchannel'.*per_chan"),
    ],
)
def test_unknown_keys_of_parts(registry, config, message):
    given = {}
    if registry is RELAXATIONS:
        given = dict(candidates=[(2, 2), (4, 4)])
    elif registry is QUANTIZERS:
        given = dict(bits=(4,), target='weight')
    with pytest.raises(KeyError, match=message):
        build(registry, config, **given)


@pytest.mark.parametrize(
    ('quant', 'message'),
    [
        (dict(exclude=3), 'quant.exclude: found 3'),
        (dict(exclude=[3]), r'quant.exclude: found \[3\]'),
        (dict(fixed=3), 'quant.fixed: found 3'),
        (dict(fixed=['a']), r"quant.fixed: found \['a'\]"),
        (dict(mixing=3), 'quant.mixing: found 3'),
        (dict(own_weights='yes'), "quant.own_weights: found 'yes'"),
        (dict(quantizer='LSQQuantizer'), "quant.quantizer: found 'LSQQ"),
        (dict(w_quantizer=3), 'quant.w_quantizer: found 3'),
        (dict(relaxation='Softmax'), "quant.relaxation: found 'Softmax'"),
        (dict(hardware=3), 'quant.hardware: found 3'),
        (dict(candidates=3), 'quant.candidates: found 3'),
        (dict(groups=3), 'quant.groups: found 3'),
        (dict(groups=[[]]), r'quant.groups: found'),
        (dict(groups=[3]), r'quant.groups: found'),
        (dict(relaxation=dict(type='Softmax', temperature='x')), 'Softmax.temperature'),
        (
            dict(relaxation=dict(type='Softmax', init=math.nan)),
            'Softmax.init: found',
        ),
        (dict(quantizer=dict(type='LinearQuantizer', momentum='x')), r'\.momentum'),
        (dict(quantizer=dict(type='LSQQuantizer', per_channel=3)), r'\.per_channel'),
    ],
)
def test_quant(quant, message):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=message):
        quantize(net, **{'candidates': ['W2A2', 'W4A4'], 'groups': 'layer', **quant})


def test_a_search_of_ones_own():
    for wrong, message in (
        (dict(budgets=5), 'Search.budgets: found 5'),
        (dict(warmup='x'), 'Search.warmup: found'),
        (dict(seed='x'), 'Search.seed: found'),
        (dict(clip_grad=dict(maxnorm=5)), 'Search.clip_grad: found'),
    ):
        with pytest.raises(ValueError, match=message):
            Search(nn.Conv2d(3, 4, 3), **{'budgets': BUDGETS, **wrong})
    with pytest.raises(KeyError, match=r"Search: unknown key 'warmpu'; near .*warmup"):
        Search(nn.Conv2d(3, 4, 3), BUDGETS, warmpu=0.1)


def test_what_is_right_stays_what_it_is():
    clip = dict(type='value', clip_value=1.0)
    hook = SearchHook(BUDGETS, held_out=dict(type='X'), clip_grad=clip, interval=2)
    assert hook.settings.clip_grad == clip and hook.settings.interval == 2
    assert CalibrationHook(batches=3).batches == 3
    assert Softmax([Precision(2, 2), Precision(4, 4)], init=1).logits.tolist() == [
        1.0,
        1.0,
    ]
    with pytest.raises(ValueError, match="missing a required argument: 'candidates'"):
        Softmax()
