"""A cost and its reference input, read from a config."""

import pytest

from mmmpq.costs import BOPs, Budget, CostAt, WeightBytes


def test_build():
    reference = CostAt.build(dict(type='BOPs', input_shape=[3, 8, 8], proposals=9))
    assert isinstance(reference.cost, BOPs)
    assert (reference.input_shape, reference.proposals) == ((3, 8, 8), 9)
    reference = CostAt.build(dict(type='mmmpq.WeightBytes'))
    assert isinstance(reference.cost, WeightBytes)
    assert (reference.input_shape, reference.proposals) == (None, None)


def test_a_budget_is_one():
    budget = Budget.build(dict(type='BOPs', limit='W4A4', input_shape=(3, 8, 8)))
    assert isinstance(budget, CostAt)
    assert budget.input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ('BOPs', 'penalty: found .BOPs.; expected a dict'),
        (dict(), 'penalty: type is missing.*WeightBytes'),
        (dict(type='BOP'), "penalty: unknown type 'BOP'; near names: BOPs"),
        (dict(type='BOPs', limit='W4A4'), r"penalty BOPs: wrong keys \['limit'\]"),
        (dict(type='BOPs', input_size=8), 'input_size: near names: input_shape'),
        (dict(type='BOPs', input_shape=(8, 8)), 'penalty: input_shape is .*three'),
        (dict(type='BOPs', proposals=True), 'penalty: proposals is True'),
    ],
)
def test_bad_configs(cfg, message):
    with pytest.raises(ValueError, match=message):
        CostAt.build(cfg, 'penalty')
