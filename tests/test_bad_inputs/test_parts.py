"""What is wrong in a config or a call, part by part: one line that names the key.

``PARTS`` declares what each argument of each part is, and so what it is not; the other
tables are of places whose values have a grammar of their own. A row is a place and one
wrong value; what is accepted there is said in the tests of the part.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from mmengine.registry import HOOKS, MODELS
from torch import nn

from mmmpq import Search, quantize, registry
from mmmpq.costs import Budget, Hardware, Latency
from mmmpq.engine.launch import USER_ERRORS, _message
from mmmpq.policy import Policy
from mmmpq.registry import build

NAN, INF = math.nan, math.inf
MISSING = object()  # of an argument: it has no default


def flag():
    return ['yes', 1, 0, 0.5, None, []]


def count(least=0):
    return [least - 1, 1.5, 'two', True, None, NAN, INF, [1]]


def number(least=0.0, above=False, most=INF, optional=False):
    """Of a finite number from ``least`` on, or above it, and up to ``most``."""
    wrong = [least if above else least - 0.5, 'x', True, NAN, INF, [0.5], {}]
    wrong += [] if most == INF else [most + 0.5]
    return wrong if optional else [*wrong, None]


def named(near=''):
    return ['nothing', '', 3, True, ['x'], {}, *([near] if near else [])]


def mapping(optional=True):
    return [3, 'x', True, ['x'], 0.5, *([] if optional else [None])]


def shares():
    """Of two shares of a search, in order."""
    wrong = [[0.5], [0.1, 0.2, 0.3], [0.9, 0.1], [-0.1, 0.5], [0.5, 1.5]]
    return [*wrong, [NAN, 0.5], ['a', 'b'], 'xy', 3, None]


PRICED = [
    *(3, 'BOPs', ['BOPs'], {}, dict(type='BOP'), dict(type=3)),
    *(dict(type='BOPs', limit='W4A4'), dict(type='BOPs', input_shape=3)),
    *(dict(type='BOPs', input_shape=(3, 0, 8)), dict(type='BOPs', proposals=-1)),
]
COST = {'cost': PRICED}
GROUP = {'init': [NAN, INF, 'x', True, None, []], 'drop': number(most=1)}
SOFT = {**GROUP, 'factorised': flag(), 'temperature': number(above=True)}
STEPS = [3, 'Adam', ['Adam'], True, dict(lr=0.1), dict(type='Adma', lr=0.1)]
PARTS: dict[str, dict[str, dict[str, list]]] = {
    'hook': {
        'SearchHook': {
            'budgets': [5, 'W3A3', [5], [None], [['W3A3']], [dict(type='BOPs')], None],
            'penalties': [
                *(3, [3], 'BarrierPenalty', ['BarrierPenalty'], None, [[]]),
                *(dict(type='BarrierPenalty'), [dict(type='Barier')], [{}]),
            ],
            'optimizer': [
                *STEPS,
                *(dict(type='Adam', lr='fast'), dict(type='Adam', lr=-1)),
                *(dict(type='SGD', lr=0.1, mometum=0.9), dict(type='SGD', lr=NAN)),
                dict(type='Adam', lr=0.1, betas=3),
            ],
            'scheduler': [
                *(3, 'StepLR', ['StepLR'], True, dict(step_size=2), dict(type='Step')),
                *(dict(type='StepLR'), dict(type='StepLR', stepsize=2)),
                *(dict(type='MultiStepLR', milestones=3), dict(type='StepLR', gama=1)),
            ],
            'clip_grad': [
                *(5, 'x', [1], True, dict(maxnorm=5), dict(max_norm='x')),
                *(dict(type='vlaue'), dict(type='value'), dict(type='norm', max=1)),
            ],
            'held_out': ['half', 0, 1, 1.5, -0.1, True, NAN, INF, [0.2]],
            'warmup': [*number(most=1), 1],
            'interval': count(1),
            'joint': flag(),
            'start': named('bias'),
            'margin': [*number(most=1), 1],
            'continuation': [*number(most=1), 0.05],
            'calibration': count(1),
            'measure': count(),
            'samples': count(),
            'fisher': count(),
        },
        'CalibrationHook': {
            'batches': count(1), 'batchnorm': flag(), 'final': count(),
        },
        'DistillationHook': {
            'teacher': [*mapping(False), MISSING], 'weight': number(),
            'match': [*mapping(), {'head': 'l3'}, {'head': 3}, {}],
        },
        'SandwichHook': {
            'random': count(), 'one_precision': flag(), 'one_precision_largest': flag(),
            'free': ['*', 3, [3], None, {}], 'teacher': mapping(), 'distill': number(),
            'match': [*mapping(), {'head': 'l3'}, {'head': 3}, {}],
            'calibration': count(1),
        },
        'FiniteLossHook': {},
        'ScaleClipHook': {'k': number(above=True)},
    },
    'loss': {
        'BarrierPenalty': {
            'mu': number(above=True), 'mu_end': number(above=True, optional=True),
            'scale': number(above=True), 'guard': number(above=True),
        },
        'Prob1Regularizer': {'weight': number(), 'ramp': shares()},
        'ComplexityPenalty': {
            'eta': [*number(), MISSING], 'normaliser': named('frist'),
            'uniform': ['W4A4', 3, 'W4', []], **COST,
        },
        'CostAwareLoss': {
            'beta': [*number(above=True), MISSING], 'gamma': [*number(), MISSING],
            **COST,
        },
    },
    'relaxation': {
        'Softmax': SOFT,
        'GumbelSoftmax': {**SOFT, 'anneal': number()},
        'UniformSampling': {},
    },
    'weight quantizer': {
        'LinearQuantizer': {
            'range': named('learnt'), 'per_channel': flag(), 'all_levels': flag(),
            'clip_ratio': number(above=True, optional=True),
            'momentum': number(most=1),
        },
        'LSQQuantizer': {'per_channel': flag()},
        'LSQPlusQuantizer': {'per_channel': flag(), 'all_levels': flag()},
        'DoReFaQuantizer': {'rescale': flag()},
        'GaussianQuantizer': {'normalised': flag()},
    },
    'activation quantizer': {
        'PACTQuantizer': {}, 'BatchQuantizer': {},
        'LSQQuantizer': {'per_channel': [True]},
        'LinearQuantizer': {'per_channel': [True]},
        'DoReFaQuantizer': {}, 'StoredQuantizer': {},
    },
    'model': {
        'QuantConv2d': {
            'w_bits': [0, 9, -1, 4.5, '4', None, True],
            'a_bits': [0, 9, -1, 4.5, '4', None, True],
            'quantizer': [3, 'x', dict(type='LinearQuantiser')],
            'w_quantizer': [3, 'x', dict(type='BatchQuantizer')],
            'a_quantizer': [3, 'x', dict(type='DoReFaQuantizer')],
        },
        'MixedConv2d': {
            'candidates': [
                *(3, 'W4A4', [], [3], ['W4'], ['W4A4', (4, 4)], None, [(9, 4)]),
                *([(0, 0)], [(4, 0)], MISSING),
            ],
            'relaxation': [3, 'Softmax', dict(type='Softmx'), dict(temperature=1)],
            'mixing': named('composit'),
            'own_weights': [*flag(), True],
        },
        'CifarResNet': {
            'depth': [18, 21, 0, -20, '20', None, 20.5, MISSING],
            'in_channels': count(1), 'base_channels': count(1),
            'stem_stride': count(1), 'conv_cfg': mapping(), 'norm_cfg': mapping(),
        },
        'EfficientNetLite0': {'conv_cfg': mapping(), 'act_cfg': mapping()},
        'ElasticMobileNetV3': {
            'depths': [3, 'x', [], ['x'], [0], [1.5], None],
            'kernels': [3, 'x', [], ['x'], [0], [4], None],
            'expands': [3, 'x', [], ['x'], [0], [-1], None],
            'width_mult': number(above=True),
        },
        'ElasticClsDataPreprocessor': {
            'sizes': [3, 'x', [], ['x'], [0], [-8], [1.5], None, MISSING],
        },
        'SubnetClsDataPreprocessor': {
            'architecture': [3, [3], [], 4.5, MISSING],
        },
    },
}  # fmt: skip
NEEDED = {  # what else a part wants
    'SearchHook': dict(budgets=['W3A3']),
    'DistillationHook': dict(teacher=dict(config='a.py', checkpoint='a.pth')),
    'ComplexityPenalty': dict(eta=1.0),
    'CostAwareLoss': dict(beta=0.1, gamma=0.9),
    'QuantConv2d': dict(
        in_channels=2, out_channels=2, kernel_size=3, w_bits=4, a_bits=4
    ),
    'MixedConv2d': dict(
        in_channels=2, out_channels=2, kernel_size=3, candidates=['W2A2', 'W4A4']
    ),
    'CifarResNet': dict(depth=20),
    'ElasticMobileNetV3': dict(depths=[1, 2]),
    'ElasticClsDataPreprocessor': dict(sizes=[32]),
    'SubnetClsDataPreprocessor': dict(architecture=dict(resolution=32)),
}
TYPOS = {  # a key that there is not, near one that there is
    'SearchHook': 'heldout', 'CalibrationHook': 'batchez', 'SandwichHook': 'randon',
    'DistillationHook': 'teachr', 'ScaleClipHook': 'kk', 'FiniteLossHook': 'k',
    'BarrierPenalty': 'mue', 'Prob1Regularizer': 'rampe', 'ComplexityPenalty': 'etta',
    'CostAwareLoss': 'gama', 'Softmax': 'temprature', 'GumbelSoftmax': 'aneal',
    'UniformSampling': 'temperature', 'LinearQuantizer': 'rnge',
    'LSQQuantizer': 'perchannel', 'LSQPlusQuantizer': 'alllevels',
    'DoReFaQuantizer': 'rescal', 'GaussianQuantizer': 'normalized',
    'PACTQuantizer': 'alpha', 'BatchQuantizer': 'gain', 'QuantConv2d': 'wbits',
    'MixedConv2d': 'candidate', 'CifarResNet': 'deph', 'ElasticMobileNetV3': 'kernel',
    'ElasticClsDataPreprocessor': 'size', 'SubnetClsDataPreprocessor': 'arch',
    'EfficientNetLite0': 'actcfg', 'StoredQuantizer': 'scal',
}  # fmt: skip
WRONG_PLACE = ('DoReFaQuantizer', 'StoredQuantizer', 'PACTQuantizer', 'BatchQuantizer')


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)
    )


def built(kind: str, name: str, **given: Any) -> Any:
    """Builds a part as whoever needs it does."""
    config = {**NEEDED.get(name, {}), **given, 'type': name}
    config = {k: v for k, v in config.items() if v is not MISSING}
    if kind == 'hook':
        return HOOKS.build(dict(config, type=f'mmmpq.{name}'))
    if kind == 'model':
        return MODELS.build(dict(config, type=f'mmmpq.{name}'))
    if kind == 'loss':
        return build(registry.LOSSES, config)
    two = dict(candidates=['W2A2', 'W4A4'], groups='layer', ends='fixed')
    if kind == 'relaxation':
        return quantize(net(), **two, relaxation=config)
    key = 'w_quantizer' if kind == 'weight quantizer' else 'a_quantizer'
    return quantize(net(), **two, **{key: config})


def part_rows():
    """A place, what it takes, and what the message names."""
    for kind, parts in PARTS.items():
        for name, arguments in parts.items():
            if (
                kind.split()[-1] == 'quantizer'
                and name in WRONG_PLACE[:2]
                and not (kind.startswith('weight'))
            ):
                yield f'{kind}: {name}', lambda k=kind, n=name: built(k, n), 'quantizer'
            for key, values in arguments.items():
                for value in values:
                    shown = 'missing' if value is MISSING else value

                    def call(kind=kind, name=name, key=key, value=value):
                        return built(kind, name, **{key: value})

                    yield f'{kind}: {name}.{key}={shown!r}', call, key
            if kind != 'activation quantizer' or name in WRONG_PLACE[2:]:
                key = TYPOS[name]

                def call(kind=kind, name=name, key=key):
                    return built(kind, name, **{key: 1})

                yield f'{kind}: {name}: unknown key {key}', call, key


QUANT = {
    'candidates': [
        *(3, 'W4A4', [], [3], [[]], ['W4'], ['W9A4'], [(4, 4), 'W4A4'], [(4,)]),
        *([(4, 4, 4)], [(4.5, 4)], [(True, 4)], [('4', 4)], {'1*': ['W4A4']}, {}),
        *({'*': []}, {'*': 3}, {'nothing': ['W4A4'], '*': ['W4A4']}, {3: ['W4A4']}),
        *([None], [NAN], ['W0A4']),
    ],
    'groups': [
        *(3, 'block', '', None, [[]], [3], [None], [['nothing']], ['nothing', '1']),
        *({}, True, [['1'], ['1', '2']], [[['1']]], [[3]]),
    ],
    'exclude': [3, [3], None, ['nothing'], '', [''], {}, True, [['1']], 'layer1.*'],
    'fixed': [
        *(3, ['1'], '1', {'nothing': 'W4A4'}, {'1': 'W9A4'}, {'1': 4}, {'1': ''}),
        *({3: 'W4A4'}, {'1': (4,)}, {'1': []}, True),
    ],
    'ends': named('searchd'),
    'mixing': named('output'),
    'own_weights': [*flag(), True],
    'quantizer': [3, 'x', ['x'], True, dict(type='x'), dict(type=3)],
    'w_quantizer': [3, 'x', ['x'], True, dict(rang='learned')],
    'a_quantizer': [3, 'x', ['x'], True, dict(type='BOPs')],
    'relaxation': [3, 'Softmax', True, dict(type='softmax2'), dict(type=None)],
    'hardware': [3, True, ['a'], {}, 'nothing.json', ''],
    'policy': [
        *(3, True, [], '', 'W9A9', 'W4', 'nothing.json', [4], {}, ['W4A4'], (4, 4, 4)),
        dict(layers={'0': [4, 4]}), dict(version=1, layers={}),
        dict(version='1', layers={'0': [4, 4]}), dict(version=9, layers={'0': [4, 4]}),
        dict(version=1, layers=[4]), dict(version=1, layers={'0': 3}),
        dict(version=1, layers={'0': [4, 4]}, meta=3),
        dict(version=1, layers={'0': [4, 4]}),
        dict(version=1, layers={'0': [9, 4]}),
        dict(version=True, layers={str(i): [4, 4] for i in range(4)}),
        dict(version=1, layers={**{str(i): [4, 4] for i in range(4)}, 'x': [4, 4]}),
        dict(version=1, layers={'0': [4, 4]}, meta=dict(quant=3)),
        dict(version=1, layers={'0': [4, 4]}, meta=dict(quant=dict(a=1))),
    ],
    'exclud': [[]], 'polcy': ['W4A4'], 'quantiser': [{}], 'group': ['layer'],
}  # fmt: skip
LIMITS = [
    *(None, 3, 3e10, True, [], {}, '', ' ', 'W', 'W4', 'A4', 'W4A', 'W9A4', 'W0A4'),
    *('30', '30 MB', 'GBOPs', '1.2.3 GBOPs', '-3 GBOPs', '0 GBOPs', 'nan GBOPs'),
    *('inf GBOPs', '1e400 GBOPs', '3 gbops', '3 GBOPs 4', 'W4A4 GBOPs', NAN, INF),
    *(dict(of='W4A4'), dict(ratio=1), dict(of='W4', ratio=1), dict(of=4, ratio=1)),
    *(dict(of='W4A4', ratio=r) for r in (0, -1, NAN, INF, 'x', None, True)),
    dict(of='W4A4', ratio=1, more=1),
]
SHAPES = [224, (224, 224), (3, 0, 4), (3, -1, 4), (3, 4.5, 4), 'abc', (3, '4', 4), {}]
BUDGETS = [
    *(3, None, [], {}, True),
    *(dict(type=t, limit='W4A4') for t in ('BOP', '', 3, None, 'Conv2d', [], {})),
    *(dict(type='BOPs', limit='W4A4', input_shape=s) for s in (*SHAPES, (True, 4, 4))),
    *(dict(type='BOPs', limit='W4A4', proposals=p) for p in (0, -1, 1.5, 'x', True)),
    *(dict(type='BOPs', limit='W4A4', **{k: 1}) for k in ('inputshape', 'margin')),
    dict(type='BOPs', limt='W4A4'), dict(type='BOPs', limit='W4A4', table='x.json'),
    dict(type='WeightBytes', limit='3 GBOPs'), dict(type='WeightBytes', limit='3 kB'),
    dict(type='ActivationBytes', limit='3 ms'), dict(type='Latency', limit='3 ms'),
    dict(type='Latency', limit='3 MB', table='x.json'),
    *(dict(type='Latency', limit='3 ms', table=t) for t in (3, None, '', [], 'x.json')),
]  # fmt: skip
TEXTS = [
    '',
    ',',
    'W4A4,',
    'x',
    'BOP:W4A4',
    'BOPs:',
    '0*W4A4',
    'x*W4A4',
    '2 ms',
    'W4A4 W',
]
ROW = dict(
    type='Conv2d', in_channels=3, out_channels=4, kernel_size=[3, 3], stride=[1, 1],
    groups=1, input_size=[8, 8], w_bits=4, a_bits=4, us=1.5,
)  # fmt: skip
TABLES = [
    *('', '[', '[]', '{}', '3', 'null', '"x"', '[3]', '[[]]', '{"entries": 3}'),
    *('{"entries": []}', '[' * 100_000, '[{}]', '[NaN]', '[{"us": 1, "us": 2}]'),
    *(json.dumps([{k: v for k, v in ROW.items() if k != key}]) for key in ROW),
    *(json.dumps([{**ROW, 'more': 1}]), json.dumps([ROW, ROW])),
    json.dumps([ROW]).replace('1.5', '1e400'),
    *(
        json.dumps([{**ROW, key: value}])
        for key, value in (
            *(('us', v) for v in (-1, '1', None, True, [], INF, NAN)),
            *(('w_bits', v) for v in (0, 9, 4.5, '4', None, True)),
            *(('a_bits', v) for v in (0, 9, -4, None, [])),
            *(('type', v) for v in ('Conv9d', '', 3, None, [], {})),
            *(('input_size', v) for v in (3, 'ab', None, {}, [[1]], [-8, 8], [1.5, 8])),
            *(('kernel_size', v) for v in (None, 'x', {}, [0, 3], ['a', 3], [3])),
            *(('stride', v) for v in (None, 'x', {}, [0, 1], -1)),
            *(('in_channels', v) for v in (None, 'x', {}, 0, -3, 1.5, True)),
            *(('out_channels', v) for v in (None, 'x', [], 0)),
            *(('groups', v) for v in (None, 'x', {}, 0, -1)),
        )
    ),
]
PROFILES = [
    *('', '{', '[]', '3', '{}', '{"name": "x"}', '{"name": "x", "layers": 3}'),
    *('{"name": "x", "layers": {}, "more": 1}', '{"name": "x", "layers": []}'),
    *(
        json.dumps(dict(name='x', layers=layers))
        for layers in (
            *({'Conv9d': 'any'}, {'Conv2d': 3}, {'Conv2d': []}, {'Conv2d': 'all'}),
            *({'Conv2d': ['W9A4']}, {'Conv2d': [3]}, {'Conv2d': ['W4A4', [4, 4]]}),
            *({'Conv2d': None}, {'default': True}, {'': 'any'}),
        )
    ),
    *(json.dumps(dict(name=n, layers={'default': 'any'})) for n in (3, None, [], {})),
]
POLICY = dict(format='mmmpq-policy', version=1, layers={'0': [4, 4]}, meta={})
POLICIES = [
    *('', '{', '[]', '3', 'null', '{}', '[' * 100_000, '{"format": "x"}', '\x00'),
    *(
        json.dumps({**POLICY, key: value})
        for key, value in (
            *(('version', v) for v in (None, '1', 2, 1.5, [], {}, 0, -1, True)),
            *(('layers', v) for v in (None, [], {}, 3, 'x', {'a': None}, {'a': 4})),
            *(
                ('layers', {'a': v})
                for v in ([4], [4, 4, 4], [9, 4], [4, NAN], ['4', 4])
            ),
            *(('layers', {'a': v}) for v in ([4.5, 4], [True, 4], 'W4', {}, [0, 4])),
            *(('meta', v) for v in (3, 'x', [3], True)),
            *(('meta', dict(quant=v)) for v in (3, [], 'x', {}, dict(w_quantizer=1))),
        )
    ),
    json.dumps(POLICY)[:-30],
    '{"format": "mmmpq-policy", "version": 1, "layers": {"a": [4, 4], "a": [2, 2]}}',
]
SEARCH = {
    'budgets': [5, 'W3A3', None, True, [5], ['W9A9'], [''], ['x'], []],
    'seed': ['x', 1.5, None, NAN],
    'input_shape': SHAPES,
    'penalties': [3, 'x', [3], ['x']],
    'warmup': ['x'],
    'clip_grad': [dict(maxnorm=5)],
    'warmpu': [0.1], 'optimiser': [{}],
}  # fmt: skip


def quantized(**quant: Any) -> nn.Module:
    common = dict(candidates=['W2A2', 'W4A4'], groups='layer')
    if 'policy' in quant:
        common = {}
    return quantize(net(), **{**common, **quant})


def searched(**given: Any) -> Search:
    return Search(quantized(), **{'budgets': ['W3A3'], **given})


def file_of(read: Callable, text: str, tmp_path: Any) -> Any:
    path = tmp_path / 'bad.json'
    path.write_text(text)
    return read(path)


def other_rows():
    for key, values in QUANT.items():
        for value in values:
            call = lambda k=key, v=value: quantized(**{k: v})  # noqa: E731
            yield f'quant.{key}={value!r}', call, key
    for limit in LIMITS:
        call = lambda v=limit: Budget.build(dict(type='BOPs', limit=v))  # noqa: E731
        yield f'limit={limit!r}', call, r'budget\.limit'
    for budget in BUDGETS:
        call = lambda v=budget: built('hook', 'SearchHook', budgets=[v])  # noqa: E731
        yield (
            f'budgets=[{budget!r}]',
            call,
            r'SearchHook\.budgets(\[0\])?|Latency table',
        )
    for text in TEXTS:
        call = lambda v=text: built('hook', 'SearchHook', budgets=[v])  # noqa: E731
        yield f'text: budgets=[{text!r}]', call, r'SearchHook\.budgets\[0\]|2 ms'
    for key, values in SEARCH.items():
        for value in values:
            call = lambda k=key, v=value: searched(**{k: v})  # noqa: E731
            yield f'Search.{key}={value!r}', call, key
    for read, texts in (
        (Latency, TABLES),
        (Hardware.load, PROFILES),
        (Policy.load, POLICIES),
    ):
        for text in texts:
            name = f'{read.__qualname__} of {text[:400]!r}'
            yield name, lambda path, r=read, t=text: file_of(r, t, path), r'bad\.json'


ROWS = [*part_rows(), *other_rows()]


def test_there_are_no_two_alike():
    names = [name for name, *_ in ROWS]
    assert len(set(names)) == len(names) >= 500


@pytest.mark.parametrize(
    ('call', 'key'),
    [r[1:] for r in ROWS],
    ids=[f'{i}-{r[0]}' for i, r in enumerate(ROWS)],
)
def test_one_line_that_names_it(call, key, tmp_path):
    takes_path = 'path' in call.__code__.co_varnames[: call.__code__.co_argcount]
    with pytest.raises(USER_ERRORS) as caught:
        call(tmp_path) if takes_path else call()
    said = _message(caught.value)
    key = '[wa_]*quantizer' if key == 'quantizer' else key
    assert re.search(rf'(?<!\w)({key})(?!\w)', said), said
    assert len(str(caught.value).splitlines()) == 1
