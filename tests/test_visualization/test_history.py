"""Reading search_history.jsonl."""

import json
import math

import pytest

from mmmpq.visualization.history import SearchHistory

HEADER = {
    'groups': {'g': {'layers': ['a', 'b'], 'candidates': [[2, 2], [4, 4]]}},
    'budgets': [{'type': 'BOPs', 'limit': 9.0, 'unit': 'BOPs'}],
}


def record(it, **other):
    return {
        'iter': it, 'epoch': 0, 'loss': 0.5 * it, 'penalties': {'barrier': it},
        'expected': [4.0], 'realised': [5.0], 'probs': {'g': [0.5, 0.5]}, **other,
    }  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def write_and_load(*lines, end=''):
        path = tmp_path / 'search_history.jsonl'
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + end)
        return SearchHistory.load(path)

    return write_and_load


def test_series(load):
    history = load(HEADER, record(1), record(2, bound=[7.0]), record(3, loss=None))
    assert history.iters == [1, 2, 3]
    assert history.group_of == {'a': 'g', 'b': 'g'}
    assert history.numbers('expected', 0) == [4.0] * 3
    assert history.numbers('penalties', 'barrier') == [1.0, 2.0, 3.0]
    assert history.numbers('bound', 0)[1] == 7.0
    assert math.isnan(history.numbers('bound', 0)[0])
    assert math.isnan(history.numbers('loss')[2])


def test_truncated_last_line_is_left_out(load):
    assert load(HEADER, record(1), end='{"iter": 2, "lo').iters == [1]


def test_resumed_search_replaces_what_it_wrote_again(load):
    lines = (record(1), record(2), record(3), HEADER, record(2, loss=9.0))
    history = load(HEADER, *lines)
    assert history.iters == [1, 2]
    assert history.numbers('loss') == [0.5, 9.0]


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ((), 'line 1 must be the header'),
        (({'budgets': []},), 'line 1 must be the header'),
        (({**HEADER, 'budgets': [{'type': 'BOPs'}]},), "a budget needs .*'limit'"),
        ((HEADER, {'iter': 1}), r"line 2: the record lacks \['expected'"),
        ((HEADER, record(1, expected=[1, 2])), "line 2: 'expected' has 2 numbers"),
        ((HEADER, record(1, realised=1.0)), "line 2: 'realised' is 1.0"),
        ((HEADER, record(1, probs={'g': [1.0]})), "line 2: probs of group 'g' has 1"),
    ],
)
def test_damaged_file(load, lines, message):
    with pytest.raises(ValueError, match=message):
        load(*lines)


def test_damage_in_the_middle_is_named(load, tmp_path):
    load(HEADER, record(1))
    path = tmp_path / 'search_history.jsonl'
    path.write_text(json.dumps(HEADER) + '\n{"iter": 1,\n' + json.dumps(record(2)))
    with pytest.raises(ValueError, match='line 2 is not JSON'):
        SearchHistory.load(path)
