"""mmmpq ptq, and diagnose, on a classifier that sees a few tiny pictures."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmmpq import cli
from mmmpq.cli import diagnose, ptq
from mmmpq.cli.stages import Stages
from mmmpq.engine import launch
from mmmpq.export.packed import load_packed
from mmmpq.policy import Policy

pytestmark = pytest.mark.filterwarnings('ignore:.*has been created:UserWarning')

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=train_dataloader['dataset'])
test_cfg = dict()
test_evaluator = dict(type='Accuracy', topk=(1,))
visualizer = dict(type='UniversalVisualizer')
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ptq')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(8):
            picture = random.integers(0, 120, (16, 16, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)
    (folder / 'tiny.py').write_text(CONFIG.format(pictures=str(folder / 'pictures')))
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    net = MODELS.build(dict(Config.fromfile(folder / 'tiny.py').model))
    torch.save(dict(state_dict=net.state_dict(), meta={}), folder / 'float.pth')
    net.head.fc.weight.data = net.head.fc.weight.data[:, :4].clone()
    torch.save(dict(state_dict=net.state_dict(), meta={}), folder / 'other.pth')
    return folder


@pytest.fixture
def call(folder, tmp_path):
    """Run the verb; what comes back is its report."""

    def run(*words, checkpoint='float.pth', config='tiny.py'):
        shape = ('--input-shape', 3, 16, 16, '--images', 8)
        words = [folder / config, folder / checkpoint, *shape, *words]
        ptq.main([*map(str, words), '--work-dir', str(tmp_path)])
        return json.loads((tmp_path / 'ptq.json').read_text())

    return run


@pytest.fixture
def error(call, capsys, monkeypatch):
    """The line that the verb ends with."""
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)

    def run(*words, **files):
        with pytest.raises(SystemExit) as stopped:
            launch.run(lambda: call(*words, **files))
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        return line

    return run


def test_a_budget_is_kept_and_the_packed_net_is_the_tested_one(call, tmp_path, capsys):
    report = call('--budget', 'W4A8', '3 KB')
    for budget in report['budgets']:
        assert budget['cost'] <= budget['limit']
    assert len(report['budgets']) == 2 and report['tested'] == 16
    net = load_packed(tmp_path / 'net.safetensors')
    policy = Policy.load(tmp_path / 'policy.json')
    layers = {
        n: tuple(m.precision) for n, m in net.named_modules() if n in policy.layers
    }
    assert layers == {n: tuple(p) for n, p in policy.layers.items()}
    assert 'BatchNorms folded' in capsys.readouterr().out


def test_it_goes_on_where_it_was_killed(call, tmp_path, monkeypatch):
    first = call('--budget', 'W4A8')
    (layers,) = (tmp_path / 'layers').iterdir()
    files = sorted(layers.iterdir())
    wanted = load_packed(tmp_path / 'net.safetensors').state_dict()
    for path in files[3:]:
        path.unlink()
    made = []
    from mmmpq.post_training import reconstruction

    settled = reconstruction._settled
    monkeypatch.setattr(
        reconstruction, '_settled', lambda *args: made.append(1) or settled(*args)
    )
    again = call('--budget', 'W4A8')
    assert len(made) == len(files) - 3
    assert again['metrics'] == first['metrics']
    found = load_packed(tmp_path / 'net.safetensors').state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_fixed_precision_nearest_without_labels(call):
    assert call('--policy', 'W8A8', '--rounding', 'nearest')['rounding'] == 'nearest'
    assert call('--budget', 'W4A8', '--no-labels')['budgets'][0]['given'] == 'W4A8'


def test_equalised_layers(call, capsys):
    report = call('--policy', 'W8A8', '--equalise')
    blocks = ('layer1.0', 'layer1.1', 'layer2.0', 'layer2.1')
    pairs = [[f'backbone.{b}.conv1', f'backbone.{b}.conv2'] for b in blocks]
    assert report['equalised'] == pairs
    assert '4 pairs of layers equalised' in capsys.readouterr().out.replace('\n', ' ')


def test_max_drop(call, capsys):
    report = call('--budget', 'W8A8', '--max-drop', '100', '--points', 3)
    assert report['drop']['points'] <= 100
    cost = report['budgets'][0]
    assert cost['cost'] < 0.5 * cost['limit']  # the cheapest of all
    assert '100' in capsys.readouterr().out


def test_bad_input(error, folder, tmp_path):
    assert 'cannot be met' in error('--budget', '10 B')
    assert 'of another model' in error('--budget', 'W4A8', checkpoint='other.pth')
    assert 'found no file' in error('--budget', 'W4A8', checkpoint='no.pth')
    line = error('--budget', 'W4A8', '--max-drop', 1, '--metric', 'bbox_mAP')
    assert "--metric: the evaluator gives no 'bbox_mAP'" in line and 'top1' in line
    text = (folder / 'tiny.py').read_text()
    (folder / 'none.py').write_text(text + 'train_dataloader = None\n')
    assert 'train_dataloader' in error('--budget', 'W4A8', config='none.py')
    assert sys.exc_info()[0] is None


def test_of_a_packed_and_of_a_float_net(folder, tmp_path, capsys):
    net, float_net = tmp_path / 'net', [folder / 'tiny.py', folder / 'float.pth']
    shape = ['--input-shape', 3, 16, 16, '--images', 8]
    words = [*float_net, '--policy', 'W2A8', *shape, '--work-dir', net]
    ptq.main(list(map(str, words)))
    for i, words in enumerate(
        ([net / 'config.py', net / 'net.safetensors'], [*float_net, '--policy', 'W2A8'])
    ):
        out = tmp_path / str(i)
        diagnose.main(list(map(str, [*words, '--images', 8, '--out', out])))
        found = json.loads((out / 'diagnosis.json').read_text())
        harms = [f['harm'] for f in found]
        assert harms == sorted(harms, reverse=True) and len(found) >= 10
        few = [f['name'] for f in found if 'too few bits' in ' '.join(f['faults'])]
        assert bool(few) == (i == 1)  # packed weights have no errors of their own
        assert (out / 'diagnosis.png').read_bytes().startswith(b'\x89PNG')
        page = (out / 'diagnosis.html').read_text()
        assert all(f'<td>{name}</td>' in page for name in few)
        shown = capsys.readouterr().out
        assert 'what to do' in shown and 'diagnosis.html' in shown


SEARCH = """
_base_ = 'tiny.py'
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier',
    quant=dict(candidates=['W2A4', 'W4A8', 'W8A8'], groups='layer'))
load_from = {float!r}
budget = dict(type='BOPs', limit='W4A8', input_shape=(3, 16, 16))
custom_hooks = [
    dict(type='mmmpq.SearchHook', budgets=[budget], calibration=2, measure=0)]
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
val_cfg = dict()
val_evaluator = dict(type='Accuracy', topk=(1,))
"""


@pytest.fixture(scope='module')
def search(folder):
    paths = dict(pictures=str(folder / 'pictures'), float=str(folder / 'float.pth'))
    (folder / 'search.py').write_text(SEARCH.format(**paths))
    return folder / 'search.py'


def test_budgets_of_a_search_s_config(call, error, search, monkeypatch):
    """They hold where none is given, at the reference input that is asked for."""
    (budget,) = call(config=search.name)['budgets']
    assert budget['given'] == 'W4A8' and budget['cost'] <= budget['limit']
    monkeypatch.setattr(ptq, 'cheapest_inside', lambda *args: None)
    said = error('--max-drop', 1, config=search.name)
    assert '--max-drop: no net inside W4A8 is within 1 points' in said
    assert 'none is given, and the config has no SearchHook' in error()


def test_a_ladder_says_what_each_rung_bought(search, tmp_path, monkeypatch):
    """One command; one rung more, and the same stages are not run again."""
    titles = []

    def in_this_process(self, title, words):
        titles.append(title)
        cli.main(words)
        return 2.0

    monkeypatch.setattr(Stages, '_run', in_this_process)
    words = ['run', str(search), '--work-dir', str(tmp_path), '--rungs']
    found = {}
    ladder = ['ptq', 'finetune', 'search']
    for rungs in (ladder[:1], ladder[:2], ladder, ladder):
        cli.main([*words, *rungs])
        found = json.loads((tmp_path / 'results.json').read_text())
        assert load_packed(found['packed'])
        assert ('report' in found) == ('search' in rungs)
    assert sorted(titles) == sorted(set(titles))  # each once
    names = [row['name'] for row in found['rows']]
    assert names == ['float', 'ptq', 'ptq, fine-tuned', 'searched']
    assert [row['seconds'] for row in found['rows']] == [0, 2, 4, 4]
    limit = Policy.load(found['policy']).meta['budgets'][0]['limit']
    assert all(row['bops'] <= limit for row in found['rows'][1:])
    page = (tmp_path / 'report' / 'index.html').read_text()
    assert 'ptq, fine-tuned' in page and '4 s' in page
