"""What is right passes the check of arguments as it is; tests/test_bad_inputs has what
is wrong."""

import pytest

from mmmpq.engine.hooks import CalibrationHook, SearchHook
from mmmpq.layers import Softmax
from mmmpq.policy import Precision

BUDGETS = ['W3A3']


def test_what_is_right_stays_what_it_is():
    clip = dict(type='value', clip_value=1.0)
    hook = SearchHook(BUDGETS, held_out=dict(type='X'), clip_grad=clip, interval=2)
    assert hook.settings.clip_grad == clip and hook.settings.interval == 2
    assert CalibrationHook(batches=3).batches == 3
    assert Softmax([Precision(2, 2), Precision(4, 4)], init=1).logits.tolist() == [
        1.0,
        1.0,
    ]
    with pytest.raises(
        ValueError, match=r'Softmax\.init: found 10{9,}; accepted is a f'
    ):
        Softmax([Precision(2, 2), Precision(4, 4)], init=10**400)
    with pytest.raises(ValueError, match="missing a required argument: 'candidates'"):
        Softmax()
