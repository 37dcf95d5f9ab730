"""When the logits step: warm-up, interval, accumulation, epochs."""

from types import SimpleNamespace

import pytest

from mmmpq.hooks.schedule import Schedule


def at(iteration, max_iters=24, accumulated=1, length=8):
    return SimpleNamespace(
        iter=iteration,
        max_iters=max_iters,
        optim_wrapper=SimpleNamespace(_accumulative_counts=accumulated),
        train_loop=SimpleNamespace(dataloader=range(length)),
    )


@pytest.mark.parametrize(
    ('args', 'accumulated', 'due'),
    [
        ((0.0, 1, False), 1, list(range(24))),
        ((0.25, 4, False), 1, [6, 10, 14, 18, 22]),
        ((0.25, 1, False), 4, list(range(6, 24))),  # accumulation is the weights' own
        ((0.5, 1, True), 1, list(range(12, 24))),
        ((0.5, 2, True), 4, [12, 13, 14, 15, 20, 21, 22, 23]),
    ],
)
def test_steps(args, accumulated, due):
    schedule = Schedule(*args)
    runners = [at(i, accumulated=accumulated) for i in range(24)]
    assert [r.iter for r in runners if schedule.is_due(r)] == due
    window = accumulated if args[2] else 1
    assert round(schedule.steps(runners[0]) + 0.499) * window == len(due)
    assert schedule.steps_per_epoch(runners[0]) == 8 / window / args[1]


def test_progress_and_epochs():
    schedule = Schedule(0.25, 2, False)
    assert [schedule.progress(at(i)) for i in (0, 23)] == [0, 1]
    assert [schedule.epoch(at(i)) for i in (0, 2, 8, 23)] == [0, 0.25, 1, 2.875]
    assert schedule.moved(at(3)) == schedule.moved(at(6)) == 0
    assert schedule.moved(at(10)) == schedule.moved(at(8), ahead=1) == 4 / 23
    assert Schedule(0.0, 2, True).moved(at(4, accumulated=3), ahead=1) == 10 / 23


@pytest.mark.parametrize(
    ('args', 'message'),
    [((1.0, 1, False), 'warmup: found 1.0'), ((0.1, 0, True), 'interval: found 0')],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*args)
