"""That much of a net stays float is said wherever its cost is."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmmpq.costs.bill import cost
from mmmpq.costs.left_float import float_note, float_share
from mmmpq.costs.profile import profile
from mmmpq.models import quantize
from mmmpq.search import Problem
from mmmpq.visualization.page import _facts

CANDIDATES = ['W2A2', 'W4A4']
BUDGET = dict(type='BOPs', limit='W3A3', input_shape=(3, 8, 8))


def net(exclude=('2',)):
    layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, padding=1)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 21, 1))
    return quantize(model, candidates=CANDIDATES, exclude=exclude)


def test_the_share_is_that_of_the_float_net():
    share = float_share(profile(net(), (3, 8, 8)), {'0', '1', '3'})
    macs = [64 * 12, 64 * 16, 81 * 64, 81 * 84]
    weights = [12, 16, 64, 84]
    assert share == dict(bops=macs[2] / sum(macs), weights=weights[2] / sum(weights))


@pytest.mark.parametrize('share', [None, [], {}, dict(bops='a', weights=1.0), 'x'])
def test_what_a_file_has_instead(share):
    assert float_note(share) == ''


def test_a_fifth_is_not_said():
    assert float_note(dict(bops=0.2, weights=0.1)) == ''
    assert float_note(dict(bops=0.1, weights=0.21)).startswith('10% of the BOPs')


def test_where_it_is_said():
    model, said = net(), []
    problem = Problem(model, [BUDGET, dict(BUDGET, limit='W4A4')], log=said.append)
    share = float_share(profile(model, (3, 8, 8)), {'0', '1', '3'})
    note = float_note(share)
    assert said == [note]
    assert problem.tables[0].floats == 1024 * 81 * 64
    policy = problem.policy()
    assert policy.meta['float_share'] == share
    bill = cost(model, (3, 8, 8))
    assert ' '.join(str(bill).split()).endswith(note)
    history = SimpleNamespace(group_of={}, groups=[], records=[])
    assert note in _facts(policy, history)


def test_a_float_net_is_no_news():
    assert 'stay float' not in str(cost(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8)))
    said = []
    Problem(net(exclude=()), [BUDGET], log=said.append)
    assert said == []
