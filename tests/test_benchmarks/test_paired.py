"""benchmarks/paired.py: differences, intervals and Holm, against values by hand."""

import pytest


@pytest.fixture
def paired():
    import paired

    return paired


def records(method, scores, **settings):
    common = dict(set='x', budget='W3A3', method=method, settings=settings)
    return [dict(common, seed=s, accuracy=a) for s, a in enumerate(scores)]


def test_holm(paired):
    assert paired.holm([]) == []
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]


def test_an_interval_by_hand(paired):
    """Differences 1, 2, 3: mean 2, s = 1, t(.975, 2) = 4.3027, half = 4.3027 / √3."""
    found = paired.differences(
        records('mine', [11, 22, 33]) + records('other', [10, 20, 30, 40]), 'mine'
    )
    (row,) = found
    assert (row['pairs'], row['difference']) == (3, 2)
    assert row['low'] == pytest.approx(2 - 4.302653 / 3**0.5)
    assert row['high'] == pytest.approx(2 + 4.302653 / 3**0.5)
    assert row['holm'] == row['p'] == pytest.approx(0.0741799, rel=1e-5)


def test_a_float_net_counts_once(paired):
    """Seeds 0 and 2 start from one float net, 1 and 3 from another."""
    mine = records('mine', [1, 2, 3, 6], floats=2)
    (row,) = paired.differences(mine + records('o', [0, 0, 0, 0], floats=2), 'mine')
    assert (row['pairs'], row['difference']) == (2, 3)  # of (1 + 3) / 2 and (2 + 6) / 2
    assert row['high'] - row['difference'] == pytest.approx(12.7062 * 0.5**0.5 * 2**0.5)


def test_equal_differences_and_too_few(paired):
    runs = records('mine', [1, 2]) + records('o', [1, 2]) + records('one', [5])
    (row,) = paired.differences(runs, 'mine')
    assert (row['low'], row['high'], row['p']) == (0, 0, 1)
    assert paired.differences(runs, 'absent') == []


def test_the_table(paired):
    runs = records('mine', [1.0, 1.1, 1.2]) + records('o', [0.8, 0.91, 0.99])
    text = paired.markdown(paired.differences(runs, 'mine'), 'mine').splitlines()
    assert text[0].startswith('`mine` minus each method')
    assert text[-1].startswith(
        '| x | W3A3 | o | 3 | **+0.2000** | +0.1752 to +0.2248 |'
    )
