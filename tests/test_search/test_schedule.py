"""When the logits step: warm-up, interval, accumulation, epochs."""

import math

import pytest

from mmmpq.search import Settings
from mmmpq.search.schedule import Schedule


@pytest.mark.parametrize(
    ('args', 'due'),
    [
        ((0.0, 1), list(range(24))),
        ((0.25, 4), [6, 10, 14, 18, 22]),
        ((0.5, 1), list(range(12, 24))),
        ((0.5, 2, 4), [12, 13, 14, 15, 20, 21, 22, 23]),
    ],
)
def test_steps(args, due):
    schedule = Schedule(24, *args)
    assert [i for i in range(24) if schedule.is_due(i)] == due
    assert math.ceil(schedule.steps) * schedule.window == len(due)
    assert schedule.steps_in(8) == 8 / schedule.window / schedule.interval


def test_progress():
    schedule = Schedule(24, 0.25, 2)
    assert [schedule.progress(i) for i in (0, 23)] == [0, 1]
    assert schedule.moved(3) == schedule.moved(6) == 0
    assert schedule.moved(10) == schedule.moved(8, ahead=1) == 4 / 23
    assert Schedule(24, 0.0, 2, 3).moved(4, ahead=1) == 10 / 23


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(warmup=1.0), 'S.warmup: found 1.0'),
        (dict(interval=0), 'S.interval: found 0'),
        (dict(continuation=0.05), r'S.continuation: found 0.05.*warmup=0.1'),
        (dict(start='cold'), "S.start: found 'cold'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings).check('S', ['some'], None)
