"""benchmarks/runtimes.py: its intervals, and what it says of a missing runtime."""

import sys

import pytest
from scipy.stats import binom

pytest.importorskip('onnxruntime')


@pytest.fixture
def runtimes():
    import runtimes

    return runtimes


@pytest.mark.parametrize('count', [10, 30, 100])
def test_intervals_of_medians_cover_95_percent(runtimes, count):
    low, high = runtimes.interval([*range(count, 0, -1)])
    # The median is within unless too few, or too many, of the values are below it.
    assert low + high == count + 1
    covered = 1 - 2 * binom.cdf(low - 1, count, 0.5)
    assert covered >= 0.95 > 1 - 2 * binom.cdf(low, count, 0.5)


def test_a_runtime_that_is_not_installed(runtimes, monkeypatch, capsys):
    monkeypatch.setitem(runtimes.PACKAGES, 'openvino', ['no_such_runtime'])
    monkeypatch.setattr(sys, 'argv', ['runtimes.py', '--runtimes', 'openvino'])
    with pytest.raises(SystemExit):
        runtimes.main()
    said = capsys.readouterr().err
    assert '--runtimes openvino: found no package no_such_runtime' in said


def test_a_policy_that_is_none(runtimes, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['runtimes.py', '--policies', 'W4'])
    with pytest.raises(ValueError, match="--policies: found 'W4'"):
        runtimes.main()
