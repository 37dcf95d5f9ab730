"""What verbs read of the SearchHook of a config."""

from mmengine.config import Config

from mmmpq.engine.launch import search_hooks
from mmmpq.engine.search_config import search_budgets, search_reference

SHAPE = (3, 8, 8)


def config(*budgets):
    return Config(dict(custom_hooks=[dict(type='mmmpq.SearchHook', budgets=budgets)]))


def test_budgets_may_be_texts():
    cfg = config('20 KB', dict(type='BOPs', limit='W3A3', input_shape=SHAPE))
    assert search_reference(cfg) == ('WeightBytes', {})
    first, second = search_budgets(cfg, None)['budgets']
    assert first == dict(type='WeightBytes', limit='20 KB')
    assert second['input_shape'] == SHAPE
    (hook,) = search_hooks(cfg)
    assert hook['budgets'] == [first, second]


def test_those_of_a_command_line_take_the_reference_input_of_the_config():
    cfg = config(dict(type='BOPs', limit='W3A3', input_shape=SHAPE))
    assert search_budgets(cfg, ['W4A4', '1 MB'])['budgets'] == [
        dict(type='BOPs', limit='W4A4', input_shape=SHAPE),
        dict(type='WeightBytes', limit='1 MB', input_shape=SHAPE),
    ]
