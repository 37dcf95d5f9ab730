"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import pytest

from mmmpq.policy import Policy

EXAMPLES = Path(__file__).parents[1] / 'examples'


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('budget', ['W3A3', '20 KB'])
def test_minimal_search(budget, tmp_path, capsys):
    out = tmp_path / 'policy.json'
    argv = ['--epochs', '3', '--budget', budget, '--out', str(out)]
    policy, as_float, quantized = example('minimal_search').main(argv)
    (spent,) = policy.meta['budgets']
    assert 0.7 * spent['limit'] < spent['cost'] <= spent['limit']
    assert Policy.load(out).layers == policy.layers
    assert len(set(policy.layers.values())) > 1
    assert as_float > 0.9 and quantized > 0.85
    assert 'accuracy' in capsys.readouterr().out
