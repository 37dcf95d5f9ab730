"""tools/qfa_search.py, on a small supernet that sees a few digits."""

import csv
import importlib
import json
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from sklearn.datasets import load_digits

from mmmpq.costs import BOPs, WeightBytes, profile, total_cost
from mmmpq.engine.batches import train_batches
from mmmpq.engine.launch import build_runner
from mmmpq.models import calibrate_subnet
from mmmpq.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmmpq', 'images_of_ones_own'])
model = dict(
    type='mmmpq.QuantModel',
    base_type='ImageClassifier',
    quant=dict(
        candidates=[(w, a) for w in (2, 3, 4) for a in (2, 3, 4)], groups='layer',
        mixing='sampled', relaxation=dict(type='mmmpq.UniformSampling'),
        w_quantizer=dict(type='mmmpq.LSQQuantizer'),
        a_quantizer=dict(type='mmmpq.BatchQuantizer')),
    data_preprocessor=dict(mean=[85] * 3, std=[95] * 3, num_classes=10),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8))
data = dict(
    batch_size=10, num_workers=0, persistent_workers=False,
    pipeline=[dict(type='ImageOfOnesOwn'), dict(type='PackInputs')])
pipeline = data.pop('pipeline')
train_dataloader = dict(
    data, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_prefix={train!r}, pipeline=pipeline))
val_dataloader = dict(
    data, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_prefix={val!r}, pipeline=pipeline))
val_evaluator = dict(type='Accuracy')
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
custom_hooks = [dict(type='mmmpq.NoSuchHook')]  # those of the training are not built
visualizer = dict(type='UniversalVisualizer')
randomness = dict(seed=7)
"""
IMPORTED = """
from mmpretrain.datasets import LoadImageFromFile
from mmpretrain.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ImageOfOnesOwn(LoadImageFromFile):
    pass
"""
SHAPE = (3, 8, 8)
COSTS = BOPs(), WeightBytes()
FAST = ['--samples', 8, '--batches', 2, '--population', 20, '--generations', 3]
FAST += ['--re-evaluate', 3]


def call(*argv):
    module = importlib.import_module('mmmpq.cli.qfa_search')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['qfa_search', *map(str, argv)])
        module.main()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A config and a checkpoint."""
    folder = tmp_path_factory.mktemp('qfa')
    (folder / 'images_of_ones_own.py').write_text(IMPORTED)
    digits = load_digits()
    for i in range(50):
        split = 'train' if i < 30 else 'val'
        picture = folder / split / str(digits.target[i]) / f'{i}.png'
        picture.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(picture), digits.images[i] * 15)
    for split in ('train', 'val'):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(exist_ok=True)
    config = folder / 'supernet.py'
    paths = {split: str(folder / split) for split in ('train', 'val')}
    config.write_text(CONFIG.format(**paths))
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), folder / 'supernet.pth')
    yield config, folder / 'supernet.pth'
    patch.undo()


@pytest.fixture(scope='module')
def searched(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp('search')
    budgets = ['--budget', 'W2A2', 'W3A3, WeightBytes:W3A3', '--target-budget', 'W3A3']
    call(*files, *FAST, *budgets, '--work-dir', folder)
    return folder


def lines(folder):
    return (folder / 'samples.jsonl').read_text().splitlines()


@pytest.fixture(scope='module')
def profiles(files):
    init_default_scope('mmpretrain')
    return profile(MODELS.build(Config.fromfile(files[0]).model), SHAPE)


def test_every_point_has_a_policy_of_its_cost(searched, profiles):
    front = json.loads((searched / 'front.json').read_text())
    kinds = [p['kind'] for p in front['points']]
    uniform = {p['name'] for p in front['points'] if p['kind'] == 'uniform'}
    assert kinds.count('milp') == 3
    assert uniform == {'W2A2', 'W2A3', 'W3A2', 'W3A3', 'W2A4', 'W4A2'}
    assert front['metric'] == 'accuracy/top1' and set(front['tau']) == {'mlp', 'linear'}
    for point in front['points']:
        policy = Policy.load(searched / point['policy'])
        costs = [
            total_cost(c, profiles, policy.layers) for c in (BOPs(), WeightBytes())
        ]
        assert list(point['costs'].values()) == costs
        assert policy.meta['costs']['searched']['bops'] == costs[0]
        assert policy.meta['metrics'] == point['metrics']
    with (searched / 'front.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r['BOPs']) for r in rows] == [
        p['costs']['BOPs'] for p in front['points']
    ]
    assert (searched / 'front.png').stat().st_size > 5_000


def test_the_best_inside_each_budget(searched):
    front = json.loads((searched / 'front.json').read_text())
    for name, file in (
        ('W2A2', 'policy_W2A2.json'),
        ('W3A3, WeightBytes:W3A3', 'policy_W3A3+WeightBytesW3A3.json'),
        ('W3A3', 'policy_W3A3.json'),
    ):
        limits = front['budgets'][name]['limits']
        inside = [
            p
            for p in front['points']
            if all(p['costs'][k] <= limit for k, limit in limits.items())
        ]
        policy = Policy.load(searched / file)
        assert {b['type']: b['limit'] for b in policy.meta['budgets']} == limits
        top1 = policy.meta['metrics']['accuracy/top1']
        assert top1 == max(p['score'] for p in inside)
    target = json.loads((searched / 'policy.json').read_text())
    assert target == json.loads((searched / 'policy_W3A3.json').read_text())
    layers = Policy.load(searched / 'policy_W2A2.json').layers
    fixed = ('backbone.conv1', 'head.fc')
    assert {p for n, p in layers.items() if n not in fixed} == {(2, 2)}


def test_scores_are_those_of_the_fixed_net(files, searched):
    """A policy's net, built without the supernet, calibrated, counted by hand."""
    cfg = Config.fromfile(files[0])
    point = json.loads((searched / 'front.json').read_text())['points'][0]
    cfg.model.quant.pop('candidates')
    for key in ('mixing', 'relaxation'):
        cfg.model.quant.pop(key)
    cfg.model.quant.policy = str(searched / point['policy'])
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    cfg.val_dataloader.collate_fn = dict(type='default_collate')
    cfg.merge_from_dict(dict(work_dir=str(searched / 'fixed'), launcher='none'))
    cfg.custom_hooks = []
    supernet = torch.load(files[1], weights_only=True)['state_dict']
    runner = build_runner(cfg)
    model = runner.model
    own = model.state_dict()
    for name in own:  # the width of the policy among those of the supernet
        value = supernet[name]
        if own[name].shape != value.shape:
            layer = model.get_submodule(name.rpartition('.')[0])
            value = value[[(2, 3, 4).index(b) for b in layer.bits]]
        own[name] = value
    model.load_state_dict(own)
    calibrate_subnet(model, train_batches(runner, 2))
    model.eval()
    right = 0
    for batch in runner.val_dataloader:
        for sample in model.val_step(batch):
            right += int(sample.pred_label == sample.gt_label)
    assert point['score'] == pytest.approx(100 * right / 20)


def test_a_killed_run_goes_on_to_the_same_file(files, searched, tmp_path):
    """Cut in the middle of a line, continued by two processes."""
    whole = (searched / 'samples.jsonl').read_text()
    (tmp_path / 'samples.jsonl').write_text(whole[: whole.index('\n', 3000) + 40])
    budget = ['--budget', 'W3A3', '--processes', 2]
    call(*files, *FAST, *budget, '--work-dir', tmp_path)
    assert (tmp_path / 'samples.jsonl').read_text() == whole


def test_more_samples_keep_those_that_are_there(files, searched, tmp_path):
    (tmp_path / 'samples.jsonl').write_text((searched / 'samples.jsonl').read_text())
    call(*files, *FAST, '--samples', 10, '--budget', 'W4A4', '--work-dir', tmp_path)
    assert lines(tmp_path)[:9] == lines(searched)
    assert len(lines(tmp_path)) == 11


def test_by_loss_on_a_part_of_the_images(files, tmp_path):
    options = ['--measure', 'loss', '--val-batches', 1, '--rounds', 2]
    options += ['--objectives', 'WeightBytes']
    call(*files, *FAST, *options, '--budget', '1.5 KB', '--work-dir', tmp_path)
    head, *samples = map(json.loads, lines(tmp_path))
    assert head['settings']['validation images'] == 10
    assert all(s['metrics']['loss'] > 0 for s in samples)
    refined = (tmp_path / 'refined.jsonl').read_text().splitlines()
    assert json.loads(refined[0])['settings'] == head['settings']
    assert len(samples) == 8 and len(refined) > 2
    front = json.loads((tmp_path / 'front.json').read_text())
    assert all(p['costs']['WeightBytes'] <= 1500 for p in front['points'])
    assert front['budgets']['1.5 KB']['limits'] == dict(WeightBytes=1500)


def test_samples_of_something_else_are_refused(files, searched, tmp_path):
    (tmp_path / 'samples.jsonl').write_text((searched / 'samples.jsonl').read_text())
    with pytest.raises(ValueError, match='calibration batches'):
        call(*files, *FAST, '--batches', 1, '--budget', 'W3A3', '--work-dir', tmp_path)
    config, checkpoint = files
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    state['head.fc.weight'] += 1
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'measured for something else.* weights'):
        call(
            *(config, tmp_path / 'other.pth', *FAST, '--budget', 'W3A3'),
            *('--work-dir', tmp_path),
        )


def test_user_errors(files, tmp_path, capsys):
    def error(*argv, kind=ValueError):
        with pytest.raises(kind) as raised:
            call(*files, *FAST, '--work-dir', tmp_path, *argv)
        return str(raised.value)

    said = error('--budget', 'W3A3', '10 BOPs')
    assert "'10 BOPs' = 10 BOPs cannot be met: the subnets span [" in said
    assert '--metric' in error('--budget', 'W3A3', '--metric', 'mAP')
    assert 'unknown unit' in error('--budget', '3 parsecs')
    assert "budget '3 ms': found no latency table" in error('--budget', '3 ms')
    by_time = ['--budget', 'W3A3', '--objectives', 'Latency']
    assert '--objectives: Latency needs --table' in error(*by_time)
    no_val = ['--cfg-options', 'val_dataloader=', 'val_evaluator=', 'val_cfg=']
    assert 'val_dataloader' in error('--budget', 'W3A3', *no_val)
    search = ['--cfg-options', 'model.quant.mixing=composite']
    assert "needs mixing='sampled'" in error('--budget', 'W3A3', *search)
    with pytest.raises(SystemExit):
        call(*files, '--work-dir', tmp_path)
    assert '--budget' in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r'no file .*nothing\.pth'):
        call(files[0], tmp_path / 'nothing.pth', '--budget', 'W3A3')
