import json

import pytest

from mmmpq.costs import Budget, Latency, WeightBytes
from mmmpq.policy import Precision


def _uniform(precision):
    return 100.0 * precision.w_bits * precision.a_bits


@pytest.mark.parametrize(
    'type_, limit, bound',
    [
        ('BOPs', '30 GBOPs', 30e9),
        ('BOPs', '1.5TBOPs', 1.5e12),
        ('BOPs', '2e6 BOPs', 2e6),
        ('BOPs', ' 7 KBOPs ', 7e3),
        ('mmmpq.WeightBytes', '12 MB', 12e6),
        ('WeightBytes', '12 MiB', 12 * 2**20),
        ('ActivationBytes', '.5 KiB', 512),
        ('BOPs', 'W4A4', 1600),
        ('BOPs', 'W2A4', 800),
        ('BOPs', dict(of='W4A4', ratio=0.9), 1440),
        ('BOPs', dict(of=(2, 2), ratio=1), 400),
    ],
)
def test_limits(type_, limit, bound):
    budget = Budget.build(dict(type=type_, limit=limit))
    assert budget.limit == limit
    assert budget.resolve(_uniform) == pytest.approx(bound)


def test_absolute_limit_never_asks_for_the_uniform_cost():
    def never(precision: Precision):
        raise AssertionError

    cfg = dict(type=WeightBytes, limit='1 MB', input_shape=[3, 8, 8], proposals=9)
    budget = Budget.build(cfg)
    assert budget.resolve(never) == 1e6
    assert (budget.input_shape, budget.proposals) == ((3, 8, 8), 9)


def test_cost_options_reach_the_cost(tmp_path):
    entry = dict(type='Linear', in_channels=1, out_channels=1, kernel_size=[1])
    entry.update(stride=[1], groups=1, input_size=[], w_bits=4, a_bits=4, us=1)
    path = tmp_path / 'table.json'
    path.write_text(json.dumps([entry]))
    budget = Budget.build(dict(type='Latency', table=str(path), limit='3 ms'))
    assert isinstance(budget.cost, Latency)
    assert budget.resolve(_uniform) == 3000


@pytest.mark.parametrize(
    'cfg, message',
    [
        ('W4A4', 'expected a dict'),
        (dict(limit='W4A4'), 'type is missing.*BOPs'),
        (dict(type='BOP', limit='W4A4'), "unknown type 'BOP'; near names: BOPs"),
        (dict(type='Conv2d', limit='W4A4'), 'unknown type.*accepted are.*WeightBytes'),
        (dict(type='BOPs'), 'limit is missing.*GBOPs'),
        (dict(type='BOPs', limit='30'), 'no unit.*KBOPs, MBOPs, GBOPs, TBOPs'),
        (dict(type='BOPs', limit=3e10), 'no unit.*GBOPs'),
        (dict(type='BOPs', limit='30 MB'), "unknown unit 'MB'.*GBOPs"),
        (dict(type='WeightBytes', limit='30 GBOPs'), "unit 'GBOPs'.*KiB, MiB, GiB"),
        (dict(type='BOPs', limit='GBOPs'), 'no number'),
        (dict(type='BOPs', limit='1.2.3 GBOPs'), 'no number'),
        (dict(type='BOPs', limit='-3 GBOPs'), 'not a positive number'),
        (dict(type='BOPs', limit='0 GBOPs'), 'not a positive number'),
        (dict(type='BOPs', limit='W9A4'), '9 bits'),
        (dict(type='BOPs', limit=dict(of='W4A4', ratio=0)), 'ratio is 0'),
        (dict(type='BOPs', limit=dict(of='W4A4', ratio='x')), "ratio is 'x'"),
        (dict(type='BOPs', limit=dict(of='W4A4', ratio=float('nan'))), 'ratio is nan'),
        (dict(type='BOPs', limit=dict(of='W4A4')), 'has keys'),
        (dict(type='BOPs', limit='W4A4', input_shape=(224, 224)), 'three positive'),
        (dict(type='BOPs', limit='W4A4', input_shape=(3, 0, 4)), 'three positive'),
        (dict(type='BOPs', limit='W4A4', input_shape=224), 'three positive'),
        (dict(type='BOPs', limit='W4A4', proposals=0), 'proposals is 0'),
        (dict(type='BOPs', limit='W4A4', input_size=(3, 8, 8)), 'near names: input_sh'),
        (dict(type='Latency', limit='W4A4'), 'table'),
    ],
)
def test_bad_configs(cfg, message):
    with pytest.raises(ValueError, match=message):
        Budget.build(cfg)
