"""Two processes, and the real tools on the digits."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmmpq.engine import launch
from mmmpq.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
SHORT = dict(os.environ, OMP_NUM_THREADS='1', MMMPQ_TRACEBACK='1')

RANK = """
import copy, importlib.util, sys
import torch
import torch.distributed as dist
spec = importlib.util.spec_from_file_location('tiny', sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
from mmengine.config import Config
from mmmpq.engine import launch
from mmmpq.engine.hooks import SearchHook
from mmmpq.search import SearchSpace, most_probable

COST = dict(type='BOPs', input_shape=(3, 8, 8))
DNAS = dict(
    budgets=[], samples=4,
    penalties=[dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=COST)])
MODES = {
    'alternated': {}, 'joint': dict(joint=True), 'dnas': DNAS,
    'joint dnas': dict(DNAS, joint=True)}

def main():
    for mode in MODES:
        search(mode, f'{sys.argv[2]}/{mode}')

def search(mode, folder):
    cfg = Config(copy.deepcopy(tiny.BASE))
    if 'dnas' in mode:
        cfg.model.quant.relaxation = dict(
            type='GumbelSoftmax', temperature=5.0, anneal=0.1)
        cfg.model.quant.mixing = 'outputs'
    cfg.merge_from_dict(dict(
        launcher='pytorch', work_dir=folder, experiment_name=mode,
        custom_hooks=[dict(tiny.SEARCH, **MODES[mode])],
        train_cfg=dict(max_epochs=2)))
    runner = launch.build_runner(cfg)
    noises, draw = [], SearchSpace.draw
    def noting(space, generator):
        draw(space, generator)
        noises.extend(getattr(g.relaxation, 'noise', torch.zeros(0)).clone()
                      for g in space.groups)
    SearchSpace.draw = noting
    runner.train()
    SearchSpace.draw = draw
    hook = next(h for h in runner.hooks if isinstance(h, SearchHook))
    held = hook.batches.loader.dataset if not hook.joint else []
    torch.save(
        dict(logits=[p.detach() for p in hook.search.space.logits],
             choice=most_probable(hook.search.space, hook.search.tables),
             weights=[p.detach() for p in runner.model.parameters()],
             labels=[int(held[i]['labels']) for i in range(len(held))],
             noises=noises, steps=hook.search.steps, iters=runner.max_iters),
        f'{folder}/rank{dist.get_rank()}.pt')

launch.run(main)
"""


@pytest.mark.skipif(launch.get_device() != 'cpu', reason='about a CPU')
def test_two_processes_end_with_the_same_search(tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    conftest = Path(__file__).with_name('conftest.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
        + [f'--master_port={port}', str(script), str(conftest), str(tmp_path)],
        env=dict(SHORT, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for mode in ('alternated', 'joint', 'dnas', 'joint dnas'):
        check_ranks(mode, tmp_path / mode)


def check_ranks(mode, folder):
    a, b = (torch.load(folder / f'rank{i}.pt') for i in (0, 1))
    assert a['iters'] == (10 if 'joint' in mode else 8)  # 40 or 32 pictures, 2 x 4
    assert a['steps'] > 0 and any(p.any() for p in a['logits'])
    assert len(a['noises']) == 3 * a['iters']
    assert all(n.any() for n in a['noises']) == ('dnas' in mode)
    for key in ('logits', 'weights', 'noises'):
        assert all(map(torch.equal, a[key], b[key])), key
    assert a['choice'] == b['choice'] and a['labels'] == b['labels']
    saved = torch.load(folder / 'epoch_2.pth', weights_only=True)['state_dict']
    for i, logits in enumerate(a['logits'], 1):
        assert torch.equal(saved[f'convs.{i}.relaxation.logits'], logits)
    policy = Policy.load(folder / 'policy.json')
    for budget in policy.meta['budgets']:
        assert budget['cost'] <= budget['limit']
    lines = (folder / 'search_history.jsonl').read_text().splitlines()
    assert len(lines) == 1 + a['iters']  # one process alone writes


def tool(*command, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=SHORT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_digits_from_search_to_fine_tuned_net(tmp_path):
    """The tools and configs as a user has them: search, resume, fine-tune."""
    tool(ROOT / 'tools/dataset_converters/digits.py', '--out', 'digits', cwd=tmp_path)
    data = [
        'train_dataloader.dataset.data_root=digits',
        'train_dataloader.dataset.indices=120',
        'train_dataloader.batch_size=20',
        'val_dataloader.dataset.data_root=digits',
        'val_dataloader.dataset.indices=100',
        'default_hooks.checkpoint.interval=1',
        'train_cfg.val_interval=1',
    ]
    search = [ROOT / 'tools/train.py', ROOT / 'configs/bpnas/resnet_digits.py']
    search += ['--work-dir', 'search']
    options = ['--cfg-options', 'load_from=None', *data, 'custom_hooks.0.measure=1']
    tool(*search, *options, 'train_cfg.max_epochs=2', cwd=tmp_path)
    folder = tmp_path / 'search'
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    first = (folder / 'policy.json').read_text()
    history = (folder / 'search_history.jsonl').read_text()
    tool(*search, '--resume', *options, 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert (folder / 'policy.json').read_text() == first
    assert (folder / 'search_history.jsonl').read_text() == history
    assert (folder / 'report' / 'index.html').is_file()
    budget = json.loads(first)['meta']['budgets'][0]
    assert 0 < budget['cost'] <= budget['limit']
    said = tool(
        *[ROOT / 'tools/train.py', ROOT / 'configs/bpnas/resnet_digits_finetune.py'],
        *['--work-dir', 'finetune', '--cfg-options', *data, 'train_cfg.max_epochs=1'],
        'model.quant.policy=search/policy.json',
        'load_from=search/searched.pth',
        cwd=tmp_path,
    )
    assert 'ranges were there already' in said
    assert 'unexpected key' not in said and 'missing keys' not in said
    assert (tmp_path / 'finetune' / 'epoch_1.pth').is_file()
