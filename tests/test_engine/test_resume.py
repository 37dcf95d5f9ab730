"""A search that was killed and resumed ends bit by bit as one that never was."""

import json
from pathlib import Path

import pytest
import torch

from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.fileio import atomic_save

KILL = 'KillHook'
ITERATIONS = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=18),
    'default_hooks': dict(checkpoint=dict(by_epoch=False, interval=5)),
}
SCHEDULES = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=3, convert_to_iter_based=True),
]
ARCH = dict(
    optimizer=dict(type='Adam', lr=0.05, betas=(0.5, 0.999)),
    scheduler=dict(type='CosineAnnealingLR', eta_min=0.01),
)
COST = dict(type='BOPs', input_shape=(3, 8, 8))
SEARCHES = {
    'alternated': {},
    'joint': dict(joint=True),
    'biased, every second': dict(start='biased', interval=2),
    'EdMIPS': dict(
        budgets=[],
        joint=True,
        warmup=0.0,
        penalties=[dict(type='ComplexityPenalty', eta=0.1, cost=COST)],
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
        scheduler=dict(type='StepLR', step_size=1, by_epoch=True),
    ),
    'DNAS': dict(
        budgets=[],
        penalties=[dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=COST)],
        samples=3,
    ),
}
QUANTS = {
    'composite': {},
    'gumbel': {
        'model.quant.relaxation': dict(type='GumbelSoftmax', anneal=0.3),
        'model.quant.mixing': 'outputs',
    },
    'sampled': {
        'model.quant.mixing': 'sampled',
        'model.quant.quantizer': dict(type='LinearQuantizer', range='scale_clip'),
    },
}


def outcome(runner, hook):
    folder = Path(runner.work_dir)
    return dict(
        logits=[p.clone() for p in hook.search.space.logits],
        state=runner.model.state_dict(),
        written=torch.load(folder / 'searched.pth', weights_only=True)['state_dict'],
        policy=(folder / 'policy.json').read_text(),
        history=(folder / 'search_history.jsonl').read_text(),
        optimizer=hook.search.optimizer.state_dict(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def compare(make, hook_of, tmp_path, kills, search, **changes):
    search = {**ARCH, **search}
    changes = {'param_scheduler': SCHEDULES, **changes}
    whole = make(search=search, **changes)
    whole.train()
    folder = tmp_path / 'killed'
    for i, at in enumerate(kills):
        resume = dict(resume=True) if i else {}
        killed = make(
            hooks=[dict(type=KILL, at=at)],
            search=search,
            work_dir=folder,
            **changes,
            **resume,
        )
        with pytest.raises(KeyboardInterrupt):
            killed.train()
    with (folder / 'search_history.jsonl').open('a') as file:
        file.write('{"iter": 99, "epo')  # it died while it wrote a line
    resumed = make(search=search, work_dir=folder, resume=True, **changes)
    resumed.train()
    first = outcome(whole, hook_of(whole))
    second = outcome(resumed, hook_of(resumed))
    for key, value in first.items():
        assert same(value, second[key]), key
    iterations = [json.loads(x)['iter'] for x in first['history'].splitlines()[1:]]
    assert iterations == list(range(whole.max_iters))
    return whole, resumed


@pytest.mark.parametrize(
    ('search', 'quant'),
    [
        ('alternated', 'gumbel'),
        ('joint', 'sampled'),
        ('joint', 'gumbel'),
        ('biased, every second', 'composite'),
        ('EdMIPS', 'composite'),
        ('DNAS', 'gumbel'),
    ],
)
def test_by_epochs(make, hook_of, tmp_path, search, quant):
    kills = [13, 20] if search == 'alternated' else [20]
    compare(make, hook_of, tmp_path, kills, SEARCHES[search], **QUANTS[quant])


@pytest.mark.parametrize('search', SEARCHES.values(), ids=list(SEARCHES))
@pytest.mark.parametrize('kill', [6, 17])
def test_by_iterations(make, hook_of, tmp_path, search, kill):
    """Checkpoints after 5, 10 and 15; data and held-out set wrap around between."""
    compare(make, hook_of, tmp_path, [kill], search, **QUANTS['sampled'], **ITERATIONS)


def test_gumbel_by_iterations(make, hook_of, tmp_path):
    compare(make, hook_of, tmp_path, [8, 12], {}, **QUANTS['gumbel'], **ITERATIONS)


@pytest.mark.parametrize('held_out', [None, 0.25])
def test_a_sampler_without_end(make, hook_of, tmp_path, held_out):
    endless = {'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True)}
    search = dict(held_out=held_out)
    compare(make, hook_of, tmp_path, [17], search, **endless, **ITERATIONS)


def test_killed_after_the_last_checkpoint(make, hook_of, tmp_path, monkeypatch):
    """Only the end is done again: the same policy, from the same measurements."""
    for search in ({}, dict(joint=True)):
        folder = tmp_path / f'joint{bool(search)}'
        whole = make(search={**search, 'measure': 2}, work_dir=folder)
        whole.train()
        first = outcome(whole, hook_of(whole))
        again = make(search={**search, 'measure': 2}, work_dir=folder, resume=True)
        again.train()
        second = outcome(again, hook_of(again))
        for key, value in first.items():
            assert same(value, second[key]), key


def test_with_ema(make, hook_of, tmp_path):
    """The logits, too, come from the net itself and not from its average."""
    ema = dict(type='EMAHook', momentum=0.3)
    whole = make(hooks=[ema], search=ARCH)
    whole.train()
    folder = tmp_path / 'killed'
    hooks = [ema, dict(type=KILL, at=12)]
    with pytest.raises(KeyboardInterrupt):
        make(hooks=hooks, search=ARCH, work_dir=folder).train()
    resumed = make(hooks=[ema], search=ARCH, work_dir=folder, resume=True)
    resumed.train()
    first, second = (outcome(r, hook_of(r)) for r in (whole, resumed))
    for key, value in first.items():
        assert same(value, second[key]), key


def test_in_another_folder(make, hook_of, tmp_path):
    """``--resume FILE`` with a new work_dir: the history starts there anew."""
    first = make(search={})
    first.train()
    second = make(
        search={},
        resume=True,
        load_from=f'{first.work_dir}/epoch_2.pth',
    )
    second.train()
    a, b = (outcome(r, hook_of(r)) for r in (first, second))
    assert same(a['logits'], b['logits']) and a['policy'] == b['policy']
    header, *records = map(json.loads, b['history'].splitlines())
    assert header == json.loads(a['history'].splitlines()[0])
    assert [r['iter'] for r in records] == list(range(16, 24))


def test_without_a_seed_the_split_is_the_same(make, hook_of, tmp_path):
    folder = tmp_path / 'unseeded'
    changes = dict(search={}, work_dir=folder, randomness=dict(seed=None))
    first = make(**changes)
    first.train()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    second = make(**changes, resume=True)
    second.train()
    a, b = (hook_of(r).batches.loader.dataset for r in (first, second))
    assert len(a) == len(b) == 8
    for i in range(8):
        assert torch.equal(*(d.get_data_info(i)['inputs'] for d in (a, b)))


def test_workers_see_the_same_pictures(make, hook_of, tmp_path):
    compare(
        make,
        hook_of,
        tmp_path,
        [13],
        {},
        **{'train_dataloader.num_workers': 1, 'train_dataloader.prefetch_factor': 2},
    )


def test_a_checkpoint_without_a_search_is_refused(make, hook_of, tmp_path):
    """The search would begin anew, without a word."""
    first = make(search={})
    first.train()
    found = torch.load(f'{first.work_dir}/epoch_2.pth')
    state = found.pop('mmmpq_search')
    path = atomic_save(found, tmp_path / 'float.pth')
    second = make(search={}, resume=True, load_from=str(path))
    with pytest.raises(ValueError, match=r'resume: .*float\.pth holds no state of'):
        second.train()
    assert not list(Path(second.work_dir).glob('*.jsonl'))
    hook = hook_of(second)
    for key in state:
        found['mmmpq_search'] = {k: v for k, v in state.items() if k != key}
        with pytest.raises(ValueError, match=f'no {key} of a search like this one'):
            hook.after_load_checkpoint(second, found)
    second._resume = False
    hook.after_load_checkpoint(second, found)
    assert hook._resumed is None


def test_a_net_without_ranges_is_not_resumed(make, tmp_path):
    """Calibration leaves a resumed run alone."""
    tune = {'model.quant': dict(_delete_=True, policy='W4A4')}
    hooks = [dict(type='mmmpq.CalibrationHook', batches=2)]
    first = make(hooks=hooks, **tune)
    first.train()
    whole = f'{first.work_dir}/epoch_2.pth'
    again = make(
        hooks=[*hooks, WholeCheckpointHook('resume')],
        **(tune | dict(resume=True, load_from=whole)),
    )
    again.train()
    assert again.epoch == 3
    found = torch.load(whole)
    del found['meta']['policy']
    found['state_dict'] = {
        k: v for k, v in found['state_dict'].items() if 'quantizer' not in k
    }
    path = atomic_save(found, tmp_path / 'float.pth')
    started = make(
        hooks=[*hooks, WholeCheckpointHook('resume')], **tune, load_from=str(path)
    )
    started.train()  # not resumed, it is calibrated
    bare = make(
        hooks=[*hooks, WholeCheckpointHook('resume')],
        **(tune | dict(resume=True, load_from=str(path))),
    )
    with pytest.raises(ValueError, match=r'resume: .*float\.pth has nothing for'):
        bare.train()


@pytest.mark.parametrize(
    ('content', 'resume', 'message'),
    [
        (dict(weight=torch.ones(2)), True, r'resume: .*x\.pth is no checkpoint of'),
        (dict(weight=torch.ones(2)), False, r"load_from: .*x\.pth has .*'weight'"),
        (dict(state_dict={}, meta=dict(epoch=1, iter=9)), True, 'says not how far'),
    ],
)
def test_a_checkpoint_of_something_else(make, tmp_path, content, resume, message):
    path = atomic_save(content, tmp_path / 'x.pth')
    hooks = [WholeCheckpointHook('resume')]
    runner = make(hooks=hooks, load_from=str(path), resume=resume)
    with pytest.raises(ValueError, match=message):
        runner.train()
