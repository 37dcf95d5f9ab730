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
    path = config(dict(candidates=[(2, 4), (4, 2), (3, 3), (8, 8)], ends='fixed'))
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
    with pytest.raises(ValueError, match='none of the candidates W3A3, W6A6'):
        run(path, '--hardware', str(PROFILES / 'matched_248.json'))


def test_input_shape_of_the_search_budget(tool, config, capsys):
    budget = dict(type='BOPs', limit='W4A4', input_shape=(3, 16, 16))
    hooks = [dict(type='mmmpq.SearchHook', budgets=[budget])]
    tool.main([config(custom_hooks=hooks), '--json'])
    layers = json.loads(capsys.readouterr().out)['layers']
    assert layers[0]['macs'] == 16 * 16 * 3 * 64 * 9


def search(*budgets, **options):
    """Options of a config that searches at (3, 16, 16)."""
    budgets = [dict(type='BOPs', input_shape=(3, 16, 16)) | b for b in budgets]
    hook = dict(type='mmmpq.SearchHook', budgets=budgets) | options
    return dict(
        quant=dict(candidates=[(2, 2), (4, 4)], ends='fixed'), custom_hooks=[hook]
    )


def test_budgets_are_those_of_the_search(tool, config, capsys):
    path = config(
        **search(dict(limit=dict(of='W4A4', ratio=0.5)), dict(limit='3 GBOPs'))
    )

    def printed(*flags):
        tool.main([path, '--json', *flags])
        return json.loads(capsys.readouterr().out)

    found = printed()['budgets']
    low, top = (printed('--policy', p)['total']['bops'] for p in ('W2A2', 'W4A4'))
    assert [b['type'] for b in found] == ['BOPs', 'BOPs']
    assert [b['limit'] for b in found] == [top / 2, 3e9]
    assert found[0]['max'] == top and found[0]['min'] == low
    tool.main([path])
    said = capsys.readouterr().out
    assert 'budget BOPs 3 GBOPs: 3.00 GBOPs; the candidates span ' in said
    assert 'budgets' not in printed('--policy', 'W4A4')


WRONG = {
    'no unit': ([dict(limit='30')], r'SearchHook.budgets\[0\].limit'),
    'another unit': ([dict(limit='30 MB')], "unknown unit 'MB'"),
    'negative': ([dict(limit='-3 GBOPs')], 'not a positive number'),
    'a number': ([dict(limit=3e9)], 'has no unit'),
    'no limit': ([dict()], 'limit is missing'),
    'a ratio of 0': ([dict(limit=dict(of='W4A4', ratio=0))], 'ratio is 0'),
    'bits out of range': ([dict(limit='W9A9')], '9 bits'),
    'out of reach': ([dict(limit='W1A1')], 'cannot be met: the candidates span'),
    'an unknown cost': ([dict(type='Bops', limit='W3A3')], "unknown type 'Bops'"),
    'a wrong key': ([dict(limit='W3A3', inputshape=(3, 8, 8))], 'inputshape'),
    'a shape of zeros': ([dict(limit='W3A3', input_shape=(3, 0, 8))], 'input_shape'),
    'no table': ([dict(type='Latency', limit='3 ms')], 'Latency'),
    'together': (
        [dict(limit='W3A3'), dict(type='WeightBytes', limit='9 B')],
        'cannot be met',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_refuses_what_the_search_refuses(tool, config, name):
    budgets, message = WRONG[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tool.main([config(**search(*budgets)), '--json'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [(dict(start='now'), 'start'), (dict(budgets=[]), 'budgets: found none')],
)
def test_other_keys_of_the_search(tool, config, options, message):
    with pytest.raises(ValueError, match=message):
        tool.main([config(**search(dict(limit='W3A3'), **options))])


def test_flags_of_the_reference(tool, config):
    for flags in (['--input-shape', '3', '0', '16'], ['--proposals', '0']):
        with pytest.raises(ValueError, match=r'cost: (input_shape|proposals) is'):
            tool.main([config(), *flags])


def test_hardware_bounds_the_candidates_of_budgets(tool, config):
    options = search(dict(limit='W3A3'))
    options['quant']['candidates'] = [(3, 3), (4, 4)]
    path = config(**options)
    tool.main([path])
    with pytest.raises(ValueError, match='cannot be met'):
        tool.main([path, '--hardware', str(PROFILES / 'matched_248.json')])


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
