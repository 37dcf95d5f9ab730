"""tools/pareto.py, on the search of a classifier that sees a few tiny pictures."""

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

from mmmpq.cli.pareto import cheapest
from mmmpq.costs import BOPs, WeightBytes, profile, total_cost
from mmmpq.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=[(2, 2), (3, 3), (4, 4), (8, 8)], groups='layer', ends='fixed'
    ),
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
data = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True), **data)
test_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=False), **data)
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
custom_hooks = [
    dict(
        type='mmmpq.SearchHook', calibration=1, measure=0, warmup=0.0,
        budgets={budgets!r})]
visualizer = dict(type='UniversalVisualizer')
randomness = dict(seed=7)
"""
SHAPE = (3, 8, 8)
PAIR = [
    dict(type='BOPs', limit='W4A4', input_shape=SHAPE),
    dict(type='WeightBytes', limit='W3A3', input_shape=SHAPE),
]


def call(name, *argv):
    module = importlib.import_module(f'mmmpq.cli.{name}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *map(str, argv)])
        patch.setattr('mmmpq.engine.results.write_report', lambda folder: None)
        module.main()


@pytest.fixture(scope='module')
def search(tmp_path_factory):
    """Searches under ``budgets``; gives the work_dir."""
    folder = tmp_path_factory.mktemp('pareto')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(10):
            picture = random.integers(0, 120, (8, 8, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)

    def run(name, budgets):
        config = folder / f'{name}.py'
        pictures = str(folder / 'pictures')
        config.write_text(CONFIG.format(pictures=pictures, budgets=budgets))
        call('train', config, '--work-dir', folder / name)
        return folder / name

    return run


@pytest.fixture(scope='module')
def searched(search):
    return search('pair', PAIR)


@pytest.fixture(scope='module')
def profiles(searched):
    cfg = Config.fromfile(searched / 'pair.py')
    init_default_scope('mmpretrain')
    return profile(MODELS.build(cfg.model), SHAPE)


@pytest.fixture(scope='module')
def table(profiles, tmp_path_factory):
    """A latency table in which a layer takes w_bits + a_bits microseconds, and two of
    one shape in a row a microsecond less where both are narrow."""
    keys = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'groups')
    rows = {}
    for layer in profiles:
        for w, a in [(2, 2), (3, 3), (4, 4), (8, 8), (32, 32)]:
            for size in layer.shape['input_sizes']:
                keys = [
                    'in_channels',
                    'out_channels',
                    'kernel_size',
                    'stride',
                    'groups',
                ]
                row = dict({k: layer.shape[k] for k in keys}, type=layer.type)
                row.update(input_size=list(size), w_bits=w, a_bits=a, us=w + a)
                rows[json.dumps(row, sort_keys=True)] = row
    path = tmp_path_factory.mktemp('latency') / 'table.json'
    pairs = {}
    for row in rows.values():
        place = {k: v for k, v in row.items() if k not in ('w_bits', 'a_bits', 'us')}
        row = dict(first=place, second=place, summed=False, bits=[[1, 3]] * 2, us=-1)
        pairs[json.dumps(row, sort_keys=True)] = row
    table = dict(entries=list(rows.values()), pairs=list(pairs.values()))
    path.write_text(json.dumps(table))
    return path


def pareto(searched, out, *args):
    call('pareto', searched, '--out', out, *args)
    return json.loads((out / 'pareto.json').read_text())


def test_a_search_under_two_budgets_keeps_both(searched, profiles):
    policy = Policy.load(searched / 'policy.json')
    found = policy.meta['budgets']
    for cost, each in zip((BOPs(), WeightBytes()), found, strict=True):
        assert each['cost'] == total_cost(cost, profiles, policy.layers)
        assert each['cost'] <= each['limit']


def test_a_search_under_a_latency_table_fits(search, table):
    budget = dict(type='Latency', table=str(table), limit='W3A3', input_shape=SHAPE)
    policy = Policy.load(search('latency', [budget]) / 'policy.json')
    found = policy.meta['budgets'][0]
    layers = policy.layers.values()
    assert found['unit'] == 'us'
    saved = sum(p.w_bits + p.a_bits for p in layers) - found['cost']
    narrow = [max(p) <= 3 for p in layers]
    assert saved in range(sum(narrow))
    assert found['cost'] <= found['limit']


def test_policies_fit_and_a_larger_budget_is_no_worse(searched, profiles, tmp_path):
    names = ['W2A2', 'W3A3', '0.98*W4A4', 'W8A8', '1 GBOPs']
    points = pareto(searched, tmp_path, '--budgets', *names)
    assert [p['budget'] for p in points] == names
    for point in points:
        policy = Policy.load(tmp_path / point['policy'])
        found = policy.meta['budgets'][0]
        assert point['bops'] == total_cost(BOPs(), profiles, policy.layers)
        assert found['type'] == 'BOPs' and found['cost'] == point['bops']
        assert found['cost'] <= found['limit']
        assert policy.meta['seed'] == 7
        assert found['input_shape'] == list(SHAPE)
    scores = [p['score'] for p in points]
    assert scores == sorted(scores)
    cheapest = Policy.load(tmp_path / 'policy_W2A2.json').layers
    fixed = ('backbone.conv1', 'head.fc')
    assert {p for n, p in cheapest.items() if n not in fixed} == {(2, 2)}
    assert (tmp_path / 'pareto.png').stat().st_size > 5_000


def test_the_history_gives_the_same_policies(searched, tmp_path):
    args = ['--budgets', 'W2A2', 'W3A3', 'W4A4']
    by_checkpoint = pareto(searched, tmp_path / 'a', *args)
    moved = tmp_path / 'moved'
    moved.mkdir()
    for name in ('pair.py', 'search_history.jsonl', 'policy.json'):
        (moved / name).write_bytes((searched / name).read_bytes())
    by_history = pareto(moved, tmp_path / 'b', *args)
    for one, other in zip(by_checkpoint, by_history, strict=True):
        assert one['bops'] == other['bops']
        assert one['score'] == pytest.approx(other['score'], abs=1e-4)


def test_two_budgets_at_once_and_a_latency_table(searched, table, tmp_path):
    args = ['W4A4, WeightBytes:W3A3', '150 us, 2 KB', '--table', table]
    points = pareto(searched, tmp_path, '--budgets', *args)
    kinds = [[b['type'] for b in p['budgets']] for p in points]
    assert kinds == [['BOPs', 'WeightBytes'], ['Latency', 'WeightBytes']]
    for found in (b for p in points for b in p['budgets']):
        assert found['cost'] <= found['limit']
    assert points[1]['budgets'][0]['limit'] == 150
    assert points[1]['budgets'][1]['limit'] == 2000


def test_evaluation_counts_the_images_that_it_saw(searched, tmp_path):
    args = ['--budgets', 'W2A2', 'W8A8', '--evaluate']
    whole = pareto(searched, tmp_path / 'a', *args)
    assert all(p['metrics']['accuracy/top1'] % 5 == 0 for p in whole)
    part = pareto(searched, tmp_path / 'b', *args, 4, '--calibration', 2)
    assert all(p['metrics']['accuracy/top1'] % 25 == 0 for p in part)


def test_files_of_before_are_named(searched, tmp_path, capsys):
    pareto(searched, tmp_path, '--budgets', 'W3A3')
    assert 'replaced' not in capsys.readouterr().out
    pareto(searched, tmp_path, '--budgets', 'W3A3', 'W4A4', '--weights')
    said = ' '.join(capsys.readouterr().out.split())
    assert 'replaced pareto.json, pareto.png, policy_W3A3.json' in said
    assert 'policy_W4A4' not in said.partition('replaced')[2]


def test_what_is_left_is_spent(searched, tmp_path):
    """A little is left where the search has gone far below the budget."""
    args = ['--budgets', 'W8A8', '--spend', 1]
    (left,) = pareto(searched, tmp_path / 'a', *args[:2])
    (point,) = pareto(searched, tmp_path / 'b', *args)
    found = point['budgets'][0]
    assert left['bops'] < point['bops'] == found['cost'] <= found['limit']


def test_the_cheapest_policy_within_a_drop(searched, tmp_path, capsys):
    args = ['--budgets', 'W8A8', 'W2A2', 'W4A4', '--max-drop']
    points = pareto(searched, tmp_path, *args, 100)
    assert 'not fine-tuned: W2A2, ' in capsys.readouterr().out.replace('\n', ' ')
    float_metric = {p['metrics']['accuracy/top1'] + p['drop']['points'] for p in points}
    assert len({round(m, 6) for m in float_metric}) == 1  # one float net for all


def planted(*drops):
    found = dict(type='BOPs', unit='BOPs')
    return [
        dict(budget=f'W{8 - i}A8', budgets=[dict(found, cost=8.0 - i)])
        | dict(drop=dict(points=drop, half=0.2))
        for i, drop in enumerate(drops)
    ]


def test_what_is_said_of_a_drop():
    said = cheapest(planted(0.1, 0.6, 0.4, 2.0), 0.5)
    assert 'W6A8, 0.40 ± 0.20 points: measured below 0.5' in said
    with pytest.raises(ValueError, match=r'nearest is W7A8, 1\.20 below it'):
        cheapest(planted(2.0, 1.2), 0.5)


def test_weights_are_laid_out_for_the_policy(searched, tmp_path):
    pareto(searched, tmp_path, '--budgets', 'W4A4', '--weights')
    cfg = Config.fromfile(searched / 'pair.py')
    cfg.model.quant = dict(policy=str(tmp_path / 'policy_W4A4.json'))
    init_default_scope('mmpretrain')
    saved = torch.load(tmp_path / 'searched_W4A4.pth', weights_only=True)
    MODELS.build(cfg.model).load_state_dict(saved['state_dict'], strict=True)
    supernet = torch.load(searched / 'epoch_2.pth', weights_only=True)['state_dict']
    name = 'backbone.layer1.0.conv1.weight'
    assert torch.equal(saved['state_dict'][name], supernet[name])


def test_an_infeasible_budget_stops_before_any_evaluation(searched, tmp_path):
    with pytest.raises(ValueError, match=r'cannot be met.* span \[\d') as error:
        pareto(searched, tmp_path, '--budgets', 'W4A4', '10 BOPs', '--evaluate')
    assert "'10 BOPs'" in str(error.value)
    assert not (tmp_path / 'pareto.json').exists()


def test_user_errors(searched, tmp_path, table):
    def error(folder, *args, kind=ValueError):
        with pytest.raises(kind) as raised:
            pareto(folder, tmp_path, *args)
        return str(raised.value)

    assert 'no folder' in error(
        tmp_path / 'no', '--budgets', 'W4A4', kind=FileNotFoundError
    )
    assert '--table' in error(searched, '--budgets', '3 ms')
    assert 'nothing was evaluated' in error(
        searched, '--budgets', 'W3A3', '--metric', 'x'
    )
    drop = ['--budgets', 'W3A3', '--max-drop', 1]
    out = tmp_path / 'policy_W3A3.json'
    assert "--metric: the evaluator gives no 'bbox_mAP'; near names: accuracy" in error(
        searched, *drop, '--metric', 'bbox_mAP'
    )
    assert not out.exists()
    assert 'unknown unit' in error(searched, '--budgets', '3 parsecs')
    other = ['model.backbone.base_channels=8', 'model.head.in_channels=16']
    said = error(searched, '--budgets', 'W3A3', '--cfg-options', *other)
    assert 'is of another model: size mismatch' in said


@pytest.mark.parametrize('limit', [0, -1, 'nan', 'inf', 'x'])
def test_a_limit_is_above_zero(limit, capsys):
    with pytest.raises(SystemExit) as stopped:
        call('pareto', 'none', '--budgets', 'W4A4', f'--max-drop={limit}')
    assert stopped.value.code == 2
    found = f"--max-drop: found '{limit}'; accepted are numbers above 0"
    assert found in capsys.readouterr().err


def test_help_shows_what_a_budget_is(capsys):
    with pytest.raises(SystemExit):
        call('pareto', '--help')
    assert '0.9*W4A4' in capsys.readouterr().out
