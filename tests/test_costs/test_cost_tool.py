import importlib
import json
from pathlib import Path

import pytest
from mmengine import Config
from torch import nn

import mmmpq
from mmmpq.costs import LayerProfile
from mmmpq.costs.bill import bill_of
from mmmpq.models.build import _without_pretrained

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / 'configs/_base_/hardware'
KEYS = {'name', 'type', 'macs', 'bops', 'weight_bytes', 'w_bits', 'a_bits'}


@pytest.fixture(scope='module')
def tool():
    return importlib.import_module('mmmpq.cli.cost')


@pytest.fixture
def config(tmp_path):
    """Write a config of an mmpretrain ResNet-18 for CIFAR; ``quant`` is optional."""

    def write(quant=None, **others):
        model = dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet_CIFAR', depth=18, num_stages=4, style='pytorch'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=512),
        )
        if quant is not None:
            model.update(type='mmmpq.QuantModel', base_type='ImageClassifier')
            model.update(quant=quant)
        path = tmp_path / 'config.py'
        Config(dict(default_scope='mmpretrain', model=model, **others)).dump(path)
        return str(path)

    return write


@pytest.fixture
def run(tool, capsys):
    def run_json(*args):
        tool.main([*args, '--input-shape', '3', '32', '32', '--json'])
        return json.loads(capsys.readouterr().out)

    return run_json


def test_float_config(run, config):
    result = run(config())
    assert set(result) == {'layers', 'total', 'min', 'max'}
    for layer in result['layers']:
        assert set(layer) == {
            'name',
            'type',
            'macs',
            'bops',
            'weight_bytes',
            'w_bits',
            'a_bits',
        }
        assert (layer['w_bits'], layer['a_bits']) == (32, 32)
        assert layer['bops'] == 1024 * layer['macs']
    total = result['total']
    assert total == result['min'] == result['max']
    assert total['macs'] == sum(layer['macs'] for layer in result['layers'])
    assert total['bops'] == sum(layer['bops'] for layer in result['layers'])


def test_uniform_policy_on_a_plain_config(run, config):
    layers = {
        layer['name']: layer for layer in run(config(), '--policy', 'W3A4')['layers']
    }
    first = layers['backbone.layer1.0.conv1']
    assert (first['w_bits'], first['a_bits']) == (3, 4)
    assert first['macs'] == 32 * 32 * 64 * 64 * 9
    assert first['bops'] == 12 * first['macs']
    assert first['weight_bytes'] == 64 * 64 * 9 * 3 / 8
    assert layers['backbone.conv1']['w_bits'] == layers['head.fc']['a_bits'] == 8


def test_search_config_spans_its_candidates(run, config):
    path = config(dict(candidates=[(2, 4), (4, 2), (3, 3), (8, 8)]))
    result = run(path)
    low, high = run(path, '--policy', 'W4A2'), run(path, '--policy', 'W8A8')
    assert result['max'] == high['total'] == result['total']
    assert result['min']['bops'] == low['total']['bops']
    assert result['min']['weight_bytes'] < low['total']['weight_bytes']


def test_hardware_restricts_the_candidates(run, config):
    path = config(dict(candidates=[(2, 2), (3, 3), (4, 4), (6, 6)]))
    result = run(path, '--hardware', str(PROFILES / 'matched_248.json'))
    assert result['max'] == run(path, '--policy', 'W4A4')['total']


def test_hardware_without_any_candidate(run, config):
    path = config(dict(candidates=[(3, 3), (6, 6)]))
    with pytest.raises(ValueError, match=r'none of W3A3, W6A6 for Conv2d layers'):
        run(path, '--hardware', str(PROFILES / 'matched_248.json'))


def test_input_shape_of_the_search_budget(tool, config, capsys):
    budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 16, 16))
    hooks = [dict(type='mmmpq.SearchHook', budgets=[budget])]
    tool.main([config(custom_hooks=hooks), '--json'])
    layers = json.loads(capsys.readouterr().out)['layers']
    assert layers[0]['macs'] == 16 * 16 * 3 * 64 * 9


def test_table(tool, config, capsys):
    tool.main([config()])
    out = capsys.readouterr().out
    assert 'backbone.layer4.1.conv2' in out
    assert 'total' in out


def test_report_of_a_group_picks_per_cost():
    from mmmpq.policy import Precision

    layer = LayerProfile('a', 'Conv2d', 10, 8, 0, 1, {})
    choices = {'a': (Precision(2, 8), Precision(4, 2))}
    result = bill_of([layer], choices).to_dict()
    assert result['min'] == dict(macs=10, bops=80, weight_bytes=2)
    assert result['max'] == dict(macs=10, bops=160, weight_bytes=4)


def test_strips_pretrained_weights():
    cfg = dict(
        backbone=dict(
            init_cfg=dict(type='Pretrained', checkpoint='x'), pretrained=True
        ),
        heads=[dict(pretrained='y', init_cfg=dict(type='Xavier'))],
    )
    _without_pretrained(cfg)
    assert cfg['backbone'] == dict(init_cfg=None, pretrained=False)
    assert cfg['heads'] == [dict(pretrained=None, init_cfg=dict(type='Xavier'))]


def test_the_bill_of_a_plain_net():
    """In a notebook: numbers as attributes, a table when it is printed."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    bill = mmmpq.cost(net, (3, 10, 10))
    macs = [8 * 8 * 8 * 27, 8 * 8 * 32]
    assert [row['macs'] for row in bill.layers] == macs
    assert bill.total == dict(macs=sum(macs), bops=1024 * sum(macs), weight_bytes=992.0)
    quantized = mmmpq.quantize(net, candidates=['W2A2', 'W4A4'], fixed={'0': None})
    bill = mmmpq.cost(quantized, (3, 10, 10))
    assert bill.min['weight_bytes'] == (216 + 32) * 2 / 8
    assert bill.max['weight_bytes'] == (216 + 32) * 4 / 8
    assert 'Conv2d' in str(bill) and 'total' in str(bill)
