"""tools/baseline.py on a classifier that sees eight tiny pictures."""

import importlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmmpq.baselines import sensitivity
from mmmpq.engine import launch
from mmmpq.policy import Policy

# Runners that start in the same second share a name, and so their logger.
pytestmark = pytest.mark.filterwarnings('ignore:.*has been created:UserWarning')

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier',
    quant=dict(candidates=[(2, 2), (3, 3), (2, 4), (4, 4)], ends='fixed'),
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
load_from = {checkpoint!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
param_scheduler = dict(type='MultiStepLR', milestones=[1])
visualizer = dict(type='UniversalVisualizer')
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
custom_hooks = [dict(
    type='mmmpq.SearchHook', held_out=0.25, calibration=2,
    budgets=[dict(type='BOPs', limit='W3A3', input_shape=(3, 8, 8))])]
"""


@pytest.fixture(scope='module')
def tool():
    return importlib.import_module('mmmpq.cli.baseline')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('baseline')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(4):
            picture = random.integers(0, 120, (8, 8, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)
    checkpoint = str(folder / 'float.pth')
    config = CONFIG.format(pictures=str(folder / 'pictures'), checkpoint=checkpoint)
    (folder / 'tiny.py').write_text(config)
    model = dict(Config.fromfile(folder / 'tiny.py').model)
    model['type'] = model.pop('base_type')
    model.pop('quant')
    init_default_scope('mmpretrain')
    for seed, name in enumerate(('float.pth', 'other.pth')):
        torch.manual_seed(seed)
        net = MODELS.build(dict(model))
        torch.save(dict(state_dict=net.state_dict(), meta={}), folder / name)
    return folder


@pytest.fixture
def call(tool, folder, tmp_path, monkeypatch):
    """Run the tool; what comes back is the policy."""

    def run(*argv, work_dir=tmp_path):
        argv = [folder / 'tiny.py', '--work-dir', work_dir, *argv]
        monkeypatch.setattr(sys, 'argv', ['baseline.py', *map(str, argv)])
        tool.main()
        return Policy.load(work_dir / 'policy.json')

    return run


@pytest.fixture
def error(call, capsys, monkeypatch):
    """The line that the tool ends with."""
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)

    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            launch.run(lambda: call(*argv))
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        return line

    return run


def test_uniform(call, capsys):
    policy = call('--method', 'uniform')
    assert policy.layers['backbone.conv1'] == (8, 8)
    assert {p for n, p in policy.layers.items() if 'layer' in n} == {(3, 3)}
    (budget,) = policy.meta['budgets']
    assert budget['cost'] == budget['limit'] and budget['given'] == 'W3A3'
    assert policy.meta['method'] == 'uniform'
    assert policy.meta['costs']['searched']['bops'] == budget['cost']
    said = capsys.readouterr().out
    assert 'BOPs fits' in said and '100.0 %' in said and 'policy.json' in said
    assert 'replaced' not in said
    call('--method', 'uniform')
    assert 'policy.json, replaced' in capsys.readouterr().out


@pytest.mark.parametrize(
    'flags',
    [
        ['sensitivity'],
        ['sensitivity', '--metric', 'output'],
        ['hessian', '--vectors', 4],
        ['random'],
        ['random', '--samples', 3],
    ],
)
def test_a_policy_inside_two_budgets(call, flags):
    flags = ['--method', *flags, '--batches', 2, '--seed', 3]
    flags += ['--budget', 'W3A3', 'WeightBytes:1.6 KB']
    policy = call(*flags)
    bops, size = policy.meta['budgets']
    assert (bops['type'], bops['given']) == ('BOPs', 'W3A3')
    assert bops['input_shape'] == size['input_shape'] == [3, 8, 8]
    assert (size['type'], size['limit']) == ('WeightBytes', 1600)
    assert all(b['cost'] <= b['limit'] for b in (bops, size))
    assert max(b['cost'] / b['limit'] for b in (bops, size)) > 0.9
    assert policy.meta['seed'] == 3
    assert call(*flags).layers == policy.layers


def test_the_best_of_random_policies(call, tool, monkeypatch):
    losses = iter([0.5, 0.2, 0.9])
    flags = ['--method', 'random', '--budget', 'W3A3', '--samples', 3, '--seed', 4]
    monkeypatch.setattr(sensitivity, 'mean_loss', lambda *args: next(losses))
    best = call(*flags)
    assert best.layers == call('--method', 'random', '--seed', 5).layers


def test_a_killed_sensitivity_run_goes_on(call, tmp_path, monkeypatch):
    calls, mean_loss = [], sensitivity.mean_loss

    def counted(*args):
        calls.append(args)
        if len(calls) == kill:
            raise KeyboardInterrupt
        return mean_loss(*args)

    flags = ['--method', 'sensitivity', '--batches', 2]
    whole = call(*flags, work_dir=tmp_path / 'whole')
    monkeypatch.setattr(sensitivity, 'mean_loss', counted)
    kill = 7  # the first is the float net's
    with pytest.raises(KeyboardInterrupt):
        call(*flags)
    cache = tmp_path / 'sensitivity.json'
    assert len(json.loads(cache.read_text())['values']) == 5
    assert not (tmp_path / 'policy.json').exists()
    calls.clear()
    kill = None
    assert call(*flags).layers == whole.layers
    assert len(calls) == 1 + 4 * 4 - 5
    values = [
        json.loads((f / 'sensitivity.json').read_text())['values']
        for f in (tmp_path, tmp_path / 'whole')
    ]
    assert values[0] == values[1]
    calls.clear()
    other = call(*flags, '--budget', 'W2A2')
    assert not calls and other.layers != whole.layers


def test_a_cache_of_another_model(call, error, folder):
    flags = ['--method', 'sensitivity', '--batches', 1]
    call(*flags)
    said = error(*flags, '--cfg-options', f'load_from={folder / "other.pth"}')
    assert 'sensitivity.json' in said and 'what differs: weights' in said
    said = error(
        *flags, '--metric', 'output', '--cfg-options', 'model.quant.groups=layer'
    )
    assert 'groups (' in said and 'metric (there loss, here output)' in said
    said = error('--method', 'sensitivity', '--batches', 2)
    assert 'what differs: batches (there 1, here 2). Delete it' in said


def test_user_errors(call, error, folder, tmp_path):
    sensitive = ['--method', 'sensitivity']
    said = error(*sensitive, '--cfg-options', 'load_from=None')
    assert 'load_from: the config names no float checkpoint' in said
    said = error(*sensitive, '--cfg-options', 'load_from=flaot.pth')
    assert 'load_from: found no file flaot.pth' in said
    torch.save(dict(state_dict={'x.weight': torch.ones(1)}), tmp_path / 'x.pth')
    said = error(*sensitive, '--cfg-options', f'load_from={tmp_path / "x.pth"}')
    assert 'no weights for' in said and 'backbone.conv1' in said
    said = error('--method', 'random', '--budget', '10 BOPs')
    assert 'cannot be met: the candidates span' in said
    said = error('--method', 'uniform', '--budget', 'WeightByte:1 MB')
    assert "unknown type 'WeightByte'; near names: WeightBytes" in said
    said = error('--method', 'uniform', '--cfg-options', 'custom_hooks=[]')
    assert '--budget: none is given' in said
    untrained = ['--cfg-options', 'load_from=None', 'custom_hooks=[]']
    policy = call('--method', 'uniform', '--budget', 'W4A4', *untrained)
    assert {p for n, p in policy.layers.items() if 'layer' in n} == {(4, 4)}


def test_arguments(tool, capsys):
    args = tool.parse_args(['configs/x.py', '--method', 'random'])
    assert args.work_dir == 'work_dirs/x_random' and args.budget is None
    both = ['--budget', 'W3A3', '--budget', 'WeightBytes:1 MB']
    args = tool.parse_args(['x.py', '--method', 'uniform', *both])
    assert args.budget == ['W3A3', 'WeightBytes:1 MB']
    for wrong in (['--samples', '0'], ['--batches', 'x'], ['--metric', 'mse']):
        with pytest.raises(SystemExit):
            tool.parse_args(['x.py', '--method', 'random', *wrong])
    with pytest.raises(SystemExit):
        tool.parse_args(['--help'])
    assert 'mmmpq baseline configs' in capsys.readouterr().out


def test_the_reference_input_of_a_penalty(tool, folder):
    cfg = Config.fromfile(folder / 'tiny.py')
    cost = dict(type='BOPs', input_shape=(3, 8, 8))
    penalty = dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=cost)
    cfg.custom_hooks[0].pop('budgets')
    cfg.custom_hooks[0].penalties = [penalty]
    (budget,) = tool.search_hook(cfg, ['W4A4']).budgets
    assert budget.input_shape == (3, 8, 8)
    with pytest.raises(ValueError, match='--budget: none is given'):
        tool.search_hook(cfg, None)
