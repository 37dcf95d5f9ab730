"""tools/train.py and tools/test.py, on a classifier that sees four tiny pictures."""

import importlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper

from mmmpq.engine import launch
from mmmpq.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
on_cpu = pytest.mark.skipif(launch.get_device() != 'cpu', reason='about a CPU')

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
data = dict(
    batch_size=2, num_workers=0,
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True), **data)
test_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=False), **data)
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
auto_scale_lr = dict(base_batch_size=4)
visualizer = dict(type='UniversalVisualizer')
randomness = dict(seed=None)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     visualization=dict(type='VisualizationHook'))
"""


def tool(name):
    return importlib.import_module(f'mmmpq.cli.{name}')


def call(*command, **env):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tools')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(2):
            picture = random.integers(0, 120, (8, 8, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)
    config = CONFIG.format(pictures=str(folder / 'pictures'))
    (folder / 'tiny.py').write_text(config)
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """The work directory of one epoch; started outside the clone, not installed."""
    work_dir = folder / 'trained'
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'train.py'), str(folder / 'tiny.py')]
        + ['--work-dir', str(work_dir), '--seed', '7', '--auto-scale-lr'],
        cwd=folder,
        env=env,
        check=True,
        timeout=120,
    )
    return work_dir


def test_train_and_resume(folder, trained, monkeypatch):
    log = next(trained.glob('*/*.log')).read_text()
    assert 'seed: 7' in log
    first = torch.load(trained / 'epoch_1.pth', weights_only=True)
    assert first['meta']['iter'] == 2
    # SGD at lr 0.1, scaled by batch size 2 / base batch size 4
    assert first['optimizer']['param_groups'][0]['lr'] == pytest.approx(0.05)

    flags = ['--work-dir', str(trained), '--cfg-options', 'train_cfg.max_epochs=2']
    config = str(folder / 'tiny.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', config, '--resume', *flags])
    tool('train').main()
    second = torch.load(trained / 'epoch_2.pth', weights_only=True)
    assert second['meta']['iter'] == 4


def test_resume_before_the_first_checkpoint_starts_from_the_float_net(
    folder, tmp_path, monkeypatch
):
    """MMEngine alone would start from random weights, without a word."""
    start = tmp_path / 'float.pth'
    torch.save(dict(state_dict={}), start)
    seen = {}

    class Runner:
        def register_hook(self, hook):
            pass

        def train(self):
            pass

    def build(cfg):
        seen.update(resume=cfg.resume, load_from=cfg.load_from)
        return Runner()

    module = tool('train')
    monkeypatch.setattr(module, 'build_runner', build)
    flags = ['--resume', '--work-dir', tmp_path / 'run']
    argv = ['train.py', folder / 'tiny.py', *flags, '--cfg-options']
    argv.append(f'load_from={start}')
    monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
    module.main()
    assert seen == dict(resume=False, load_from=str(start))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/last_checkpoint').write_text('epoch_1.pth')
    module.main()
    assert seen == dict(resume=True, load_from=None)


@pytest.mark.parametrize('tta', [False, True])
def test_test_writes_metrics_and_predictions(folder, trained, monkeypatch, tta):
    def test(*flags):
        config, checkpoint = folder / 'tiny.py', trained / 'epoch_1.pth'
        argv = ['test.py', config, checkpoint, '--work-dir', folder / 'test', *flags]
        monkeypatch.setattr(sys, 'argv', [str(arg) for arg in argv])
        tool('test').main()

    augment = ['--tta'] if tta else ['--show-dir', folder / 'drawn']
    out = folder / f'{tta}.json'
    test('--out', out, '--out-item', 'metrics', *augment)
    accuracy = json.loads(out.read_text())['accuracy/top1']
    test('--out', out.with_suffix('.pkl'), *augment)
    predictions = pickle.loads(out.with_suffix('.pkl').read_bytes())
    right = [p['pred_label'].item() == p['gt_label'].item() for p in predictions]
    assert len(right) == 4
    assert 100 * np.mean(right) == pytest.approx(accuracy)
    if not tta:
        assert len(list((folder / 'drawn').glob('*.png'))) == 4


@on_cpu
def test_two_processes_train_and_test_on_a_cpu(folder, trained):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        env = dict(PORT=str(free.getsockname()[1]), PYTHON=sys.executable)
    work_dir = folder / 'two'
    flags = ['--work-dir', work_dir, '--seed', 7, '--cfg-options']
    said = call(
        *[ROOT / 'tools' / 'dist_train.sh', folder / 'tiny.py', 2, *flags],
        'model.backbone.norm_eval=True',
        **env,
    )
    assert 'Distributed training: True' in said
    assert 'GPU number: 2' in said
    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 1  # four pictures, two ranks of batch two
    out = folder / 'two.json'
    call(
        *[ROOT / 'tools' / 'dist_test.sh', folder / 'tiny.py'],
        *[work_dir / 'epoch_1.pth', 2, '--work-dir', work_dir],
        *['--out', out, '--out-item', 'metrics'],
        **env,
    )
    assert json.loads(out.read_text())['accuracy/top1'] % 25 == 0


@on_cpu
def test_amp_on_a_cpu_computes_in_bfloat16(folder, monkeypatch):
    seen = []
    runner_of = launch.build_runner

    def build(cfg):
        runner = runner_of(cfg)
        head = runner.model.head.fc
        head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        return runner

    train = tool('train')
    monkeypatch.setattr(train, 'build_runner', build)
    flags = ['--amp', '--work-dir', str(folder / 'amp')]
    monkeypatch.setattr(sys, 'argv', ['train.py', str(folder / 'tiny.py'), *flags])
    train.main()
    assert set(seen) == {torch.bfloat16}
    saved = weights(folder / 'amp' / 'epoch_1.pth')
    assert torch.bfloat16 not in {tensor.dtype for tensor in saved.values()}


def user_error(name, *argv, monkeypatch, capsys):
    module = tool(name)
    monkeypatch.setattr(sys, 'argv', [name, *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        launch.run(module.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    return error


def test_user_errors_are_one_line(folder, monkeypatch, capsys):
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)
    config = folder / 'tiny.py'

    def error(*argv):
        return user_error(*argv, monkeypatch=monkeypatch, capsys=capsys)

    said = error('train', folder / 'tiney.py')
    assert 'config' in said and 'tiney.py; near names there: tiny.py' in said
    said = error('train', '/no/folder/tiny.py')
    assert 'the folder /no/folder does not exist' in said
    assert '--resume: found no file x.pth' in error(
        *['train', config, '--resume', 'x.pth']
    )
    assert 'load_from: found no file x.pth' in error(
        *['train', config, '--cfg-options', 'load_from=x.pth']
    )
    assert 'checkpoint: found no file x.pth' in error('test', config, 'x.pth')
    said = error(
        *['train', config, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None']
    )
    assert 'auto_scale_lr.base_batch_size' in said


def test_traceback_on_request(folder, monkeypatch):
    monkeypatch.setenv('MMMPQ_TRACEBACK', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', str(folder / 'nothing.py')])
    with pytest.raises(FileNotFoundError):
        launch.run(tool('train').main)


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError):
        launch.run(main)


def test_a_key_error_is_printed_without_quotes(capsys):
    def main():
        raise KeyError("unknown 'x'")

    with pytest.raises(SystemExit):
        launch.run(main)
    assert capsys.readouterr().err.startswith("error: unknown 'x' (")


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (KeyError(101), 'found no key 101'),
        (KeyError('model'), "found no key 'model'"),
        (FileExistsError(17, 'File exists', 'runs'), 'runs: File exists'),
        (PermissionError(13, 'Permission denied', '/x/y'), '/x/y: Permission denied'),
        (NotADirectoryError(20, 'Not a directory', 'a/b'), 'a/b: Not a directory'),
        (IsADirectoryError(21, 'Is a directory', 'a'), 'a: Is a directory'),
        (OSError(28, 'No space left on device'), 'No space left on device'),
        (EOFError(), 'EOFError'),
        (pickle.UnpicklingError('two\nlines'), 'two lines'),
        (ImportError('no onnx'), 'no onnx'),
    ],
)
def test_what_the_system_says_is_one_line(error, words, capsys, monkeypatch):
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)

    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        launch.run(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in said and said.startswith('error: ') and said.count('\n') == 1


def test_a_place_for_results_is_looked_at_first(folder, trained, monkeypatch, capsys):
    """Not after hours of testing."""
    (folder / 'file').write_text('kept')
    (folder / 'folder.json').mkdir(exist_ok=True)
    checkpoint = trained / 'epoch_1.pth'
    for out, words in (
        ('file/x.json', f'--out: {folder}/file is a file; accepted is a file in a'),
        ('folder.json', f'--out: {folder}/folder.json is a folder'),
    ):
        said = user_error(
            *('test', folder / 'tiny.py', checkpoint, '--out', folder / out),
            *('--out-item', 'metrics'),
            monkeypatch=monkeypatch,
            capsys=capsys,
        )
        assert words in said
    assert (folder / 'file').read_text() == 'kept'


def test_a_folder_with_markup_in_its_name(folder, trained, monkeypatch, capsys):
    out = folder / 'run[/red]' / 'metrics.json'
    argv = ['test', folder / 'tiny.py', trained / 'epoch_1.pth', '--out', out]
    argv += ['--out-item', 'metrics', '--work-dir', folder / 'test']
    monkeypatch.setattr(sys, 'argv', [str(arg) for arg in argv])
    for end in ('metrics.json\n', 'metrics.json, replaced\n'):
        tool('test').main()
        assert f'wrote {out.parent}/{end}' in capsys.readouterr().out
    assert json.loads(out.read_text())


def test_predictions_go_to_a_pickle(capsys):
    with pytest.raises(SystemExit):
        tool('test').parse_args(['c.py', 'c.pth', '--out', 'x.json'])
    assert '.pkl' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['train', 'test'])
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit):
        tool(name).parse_args(['--help'])
    said = capsys.readouterr().out
    assert f'mmmpq {name}' in said.split('example', 1)[1]
    assert '--local' not in said


@on_cpu
def test_a_config_with_amp_is_built_for_a_cpu(folder):
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.merge_from_dict(dict(launcher='none', work_dir=str(folder / 'built')))
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=512.0)
    runner = launch.build_runner(cfg)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert isinstance(wrapper, launch.CPUAmpOptimWrapper)
    assert not isinstance(wrapper, AmpOptimWrapper)


OWN = 'train_cfg', 'optim_wrapper', 'auto_scale_lr', 'test_'  # keys of the base
SHORTEST = """
_base_ = ['tiny.py', 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py']
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
model = dict(type='mmmpq.QuantModel', base_type='ImageClassifier', quant=dict())
load_from = {start!r}
train_cfg = dict(max_epochs=2, val_interval=3)
val_cfg = None
test_cfg = None
sgd = dict(_delete_=True, type='SGD', lr=0.01, weight_decay=1e-4)
optim_wrapper = dict(optimizer=sgd)
custom_hooks = [dict(type='mmmpq.SearchHook', budgets=['W4A4'])]
"""


def test_the_shortest_recipe_under_a_schedule_of_300_epochs(
    folder, trained, monkeypatch
):
    tiny = (folder / 'tiny.py').read_text()
    tmp = folder / 'shortest'
    tmp.mkdir()
    kept = [line for line in tiny.splitlines() if not line.startswith(OWN)]
    (tmp / 'tiny.py').write_text('\n'.join(kept))
    start = str(trained / 'epoch_1.pth')
    (tmp / 'search.py').write_text(SHORTEST.format(start=start))
    flags = [str(tmp / 'search.py'), '--work-dir', str(tmp / 'out'), '--seed', '0']
    monkeypatch.setattr(sys, 'argv', ['train.py', *flags])
    tool('train').main()
    log = next((tmp / 'out').glob('*/*.log')).read_text()
    assert 'made for 300 epochs, the training has 2' in log
    assert 'missing keys' not in log
    rates = [float(text) for text in re.findall(r' lr: (\S+)', log)]
    assert rates[0] < 1e-3 and rates[-1] == 0.01  # it has left the warm-up
    (budget,) = Policy.load(tmp / 'out' / 'policy.json').meta['budgets']
    assert budget['cost'] <= budget['limit']
    assert (tmp / 'out' / 'searched.pth').is_file()
