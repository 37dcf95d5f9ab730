"""Files that a config names are found from any folder, by any reader of configs."""

import os

import pytest
from mmengine.config import Config

from mmmpq.policy import Policy, Precision

CONFIG = """
model = dict(
    type='Wrapper', detector=dict(type='mmmpq.QuantModel', base_type='TinyNet',
    quant=dict(policy='made/policy.json', hardware='made/policy.json')))
custom_hooks = [
    dict(type='mmmpq.SearchHook',
         budgets=['W3A3', dict(type='Latency', limit='3 ms', table='made/policy.json')],
         penalties=[dict(type='CostAwareLoss',
                         cost=dict(type='Latency', table='made/policy.json'))]),
    dict(type='mmmpq.SandwichHook',
         teacher=dict(config='config.py', checkpoint='made/policy.json'))]
"""


def named(config):
    search, sandwich = config.custom_hooks
    quant = config.model.detector.quant
    return {
        *(quant.policy, quant.hardware, search.budgets[1].table),
        *(search.penalties[0].cost.table, sandwich.teacher.checkpoint),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').mkdir()
    Policy({'a': Precision(4, 4)}).save(tmp_path / 'made' / 'policy.json')
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', ['config.py', '../config.py', '{}/config.py'])
def test_from_another_folder(name, folder):
    if name == 'config.py':
        assert named(Config.fromfile(name)) == {'made/policy.json'}
        return
    os.chdir(folder / 'elsewhere')
    found = Config.fromfile(name.format(folder))
    assert named(found) == {str(folder / 'made' / 'policy.json')}
    assert found.custom_hooks[1].teacher.config == str(folder / 'config.py')


def test_each_config_has_its_own(folder):
    """Where two folders have a file of the name, and the one at work has none."""
    os.chdir(folder / 'elsewhere')
    other = folder / 'other'
    Policy({'a': Precision(2, 2)}).save(other / 'made' / 'policy.json')
    (other / 'config.py').write_text(CONFIG)
    first = Config.fromfile('../config.py')
    assert named(Config.fromfile('../other/config.py')) != named(first)


def test_what_is_nowhere_stays(folder):
    (folder / 'made' / 'policy.json').unlink()
    os.chdir(folder / 'elsewhere')
    assert named(Config.fromfile('../config.py')) == {'made/policy.json'}
