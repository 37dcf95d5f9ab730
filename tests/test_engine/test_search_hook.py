"""A search in a real Runner: what it costs, moves, leaves alone and writes."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmmpq.baselines import fisher
from mmmpq.engine.batches import train_batches
from mmmpq.layers import Softmax
from mmmpq.models import QuantModel
from mmmpq.policy import Policy
from mmmpq.registry import RELAXATIONS
from mmmpq.search import Search, most_probable
from mmmpq.search.at_choice import at_choice
from mmmpq.search.logits import learning

BOTH = [
    dict(type='BOPs', limit='W3A3', input_shape=(3, 8, 8)),
    dict(type='WeightBytes', limit=dict(of='W3A3', ratio=0.95), input_shape=(3, 8, 8)),
]
PENALTIES = [
    dict(type='BarrierPenalty'),
    dict(type='Prob1Regularizer', ramp=(0.0, 0.5)),
    dict(
        type='CostAwareLoss',
        beta=0.1,
        gamma=0.9,
        cost=dict(type='BOPs', input_shape=(3, 8, 8)),
    ),
]


class Watch(Hook):
    """Notes E[B] of every budget, and its bound, after each iteration."""

    priority = 'LOW'

    def __init__(self, hook_of):
        self.hook_of, self.seen = hook_of, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        hook = self.hook_of(runner)
        probs = hook.search.space.probs()
        costs = [float(t.expected(probs)) for t in hook.search.tables]
        self.seen.append((runner.iter, costs, hook.search.bounds(runner.iter)))


@pytest.mark.parametrize('start', ['biased', 'continuation'])
@pytest.mark.parametrize('lr', [0.02, 0.5])
@pytest.mark.parametrize('mode', ['alternated', 'joint', 'every third'])
def test_expected_cost_stays_inside(make, hook_of, start, lr, mode):
    """From the feasible start on, below the bound, and at last below the budgets."""
    watch = Watch(hook_of)
    runner = make(
        hooks=[watch],
        search=dict(
            budgets=BOTH,
            start=start,
            optimizer=dict(type='Adam', lr=lr, betas=(0.5, 0.999)),
            joint=mode == 'joint',
            interval=3 if mode == 'every third' else 1,
            measure=0,
        ),
    )
    runner.train()
    hook = hook_of(runner)
    assert len(watch.seen) == runner.max_iters
    for _, costs, limits in watch.seen:
        assert all(cost < limit for cost, limit in zip(costs, limits, strict=True))
    steps = [costs for i, costs, _ in watch.seen if i >= 0.65 * runner.max_iters]
    if start == 'biased':
        steps = [costs for _, costs, _ in watch.seen]
    for costs in steps:
        assert all(c < t.limit for c, t in zip(costs, hook.search.tables, strict=True))
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert all(t.of(policy) <= t.limit for t in hook.search.tables)


def test_a_start_from_fisher_scores(make, hook_of):
    """Before any step the most probable policy is the one of least Fisher error."""
    runner = make(
        search=dict(fisher=2, calibration=2, warmup=0.5),
        hooks=[dict(type='KillHook', at=1)],
    )
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    search = hook_of(runner).search
    harms = fisher.measure(search.model, search.space, train_batches(runner, 2))
    for group, harm in zip(search.space.groups, harms, strict=True):
        logits = group.relaxation.logits.tolist()
        assert len(set(logits)) == len(logits)
        assert logits.index(max(logits)) == harm.argmin()


def test_warm_up_and_interval_say_when_the_logits_move(make, hook_of, monkeypatch):
    moved = []
    move = Search.move

    def noting(self, iteration, *args):
        moved.append(iteration)
        move(self, iteration, *args)

    monkeypatch.setattr(Search, 'move', noting)
    runner = make(search=dict(warmup=0.25, interval=4, measure=0))
    runner.train()
    assert runner.max_iters == 24
    assert moved == [6, 10, 14, 18, 22]
    assert hook_of(runner).search.steps == 5


@pytest.mark.parametrize('accumulated', [1, 2])
def test_architecture_step_touches_the_logits_alone(
    make, hook_of, monkeypatch, accumulated
):
    step = Search.step
    checked = []

    def compare(self, *args):
        logits = {id(p) for p in self.space.logits}
        params = [
            (n, p) for n, p in self.model.named_parameters() if id(p) not in logits
        ]
        norms = {n: b.clone() for n, b in self.model.named_buffers()}
        before = [
            (p.clone(), None if p.grad is None else p.grad.clone()) for _, p in params
        ]
        old = [p.clone() for p in self.space.logits]
        step(self, *args)
        for (name, param), (value, grad) in zip(params, before, strict=True):
            assert torch.equal(param, value), name
            assert (param.grad is None) == (grad is None), name
            assert grad is None or torch.equal(param.grad, grad), name
        for logits, value in zip(self.space.logits, old, strict=True):
            assert not torch.equal(logits, value)
            assert logits.grad is None and not logits.requires_grad
        changed = {n for n, b in self.model.named_buffers() if not b.equal(norms[n])}
        assert all('norms' in name for name in changed)
        checked.append(before[0][1] is not None)

    monkeypatch.setattr(Search, 'step', compare)
    make(
        search=dict(measure=0),
        optim_wrapper=dict(accumulative_counts=accumulated),
        train_cfg=dict(max_epochs=1),
    ).train()
    assert len(checked) > 4
    assert any(checked) == (accumulated == 2)  # half of a sum was there, and stayed


def test_weight_step_leaves_the_logits_alone(make, hook_of):
    """Neither gradients nor weight decay of the main optimizer reach them."""
    runner = make(
        search=dict(warmup=0.98, continuation=1.0, joint=True, measure=0),
        optim_wrapper=dict(optimizer=dict(weight_decay=0.5)),
    )
    runner.train()
    hook = hook_of(runner)
    assert hook.search.steps == 0
    assert all(not p.any() for p in hook.search.space.logits)


@pytest.mark.parametrize('accumulated', [1, 2])
@pytest.mark.parametrize('scale', [1.0, 1024.0])
def test_joint_gradient_is_that_of_task_and_penalty(
    make, hook_of, monkeypatch, accumulated, scale
):
    wanted, compared = [], []

    class Task(Hook):
        """The task gradient of the logits on the batch that is about to be used."""

        priority = 'LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            hook, state = hook_of(runner), torch.get_rng_state()
            if not hook.search.is_due(runner.iter):
                return
            hook.search.handed.release()
            loss = runner.model(**data_batch, mode='loss')['loss'] / accumulated
            wanted.append(torch.autograd.grad(loss, hook.search.space.logits))
            hook.search.hand(learn=True)
            torch.set_rng_state(state)

    move = Search.move

    def compare(self, iteration, grads, used):
        with learning(self.space.logits):
            penalty = self.penalty(iteration).penalty
            penalty = torch.autograd.grad(penalty, self.space.logits)
        for *task, p, grad in zip(*wanted, penalty, grads, strict=True):
            assert torch.allclose(grad / used, sum(task) + p, atol=1e-5)
        compared.append(len(wanted))
        assert used == scale
        wanted.clear()
        assert all(logits.grad is None for logits in self.space.logits)
        move(self, iteration, grads, used)

    monkeypatch.setattr(Search, 'move', compare)
    monkeypatch.setattr('mmmpq.engine.hooks.search.loss_scale', lambda *_: scale)
    wrapper = dict(accumulative_counts=accumulated)
    runner = make(
        hooks=[Task()], search=dict(joint=True, measure=0), optim_wrapper=wrapper
    )
    if scale != 1:
        backward = torch.Tensor.backward
        monkeypatch.setattr(
            torch.Tensor, 'backward', lambda loss, **k: backward(loss * scale, **k)
        )
    runner.train()
    assert compared and set(compared) == {accumulated}
    assert runner.max_iters == 30  # nothing is held out


@pytest.mark.parametrize('interval', [1, 2, 3])
def test_joint_steps_count_weight_steps(make, hook_of, interval):
    runner = make(
        search=dict(joint=True, interval=interval, warmup=0.0, measure=0),
        optim_wrapper=dict(accumulative_counts=4),
    )
    runner.train()
    # 30 iterations: eight steps of the weights, the last one after two iterations
    assert hook_of(runner).search.steps == -(-8 // interval)


def test_clip_grad_of_the_logits(make, hook_of):
    """SGD at lr 1 with clipped gradients moves no further than the clip a step."""
    runner = make(
        search=dict(
            optimizer=dict(type='SGD', lr=1.0),
            clip_grad=dict(max_norm=1e-3),
            budgets=[dict(type='BOPs', limit='W8A8', input_shape=(3, 8, 8))],
            measure=0,
        ),
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    hook = hook_of(runner)
    moved = torch.cat(hook.search.space.logits).norm()
    assert 0 < moved <= 1.001e-3 * hook.search.steps
    assert runner.message_hub.get_scalar('train/arch_grad_norm').current() > 1e-3


def test_scheduler_spans_the_architecture_steps(make, hook_of):
    runner = make(
        search=dict(scheduler=dict(type='CosineAnnealingLR', eta_min=0), measure=0)
    )
    runner.train()
    hook = hook_of(runner)
    assert hook.search.scheduler.T_max == hook.search.steps == 21
    assert hook.search.optimizer.get_lr()['lr'][0] == pytest.approx(0, abs=1e-9)


def test_overflow_of_fp16_skips_the_step(make, hook_of):
    runner = make(search=dict(measure=0), train_cfg=dict(max_epochs=1))
    runner.train()
    hook = hook_of(runner)
    before, steps = [p.clone() for p in hook.search.space.logits], hook.search.steps
    grads = [torch.full_like(p, float('inf')) for p in before]
    hook.search.move(runner.iter, grads, scale=65536.0)
    assert hook.search.steps == steps
    assert all(map(torch.equal, before, hook.search.space.logits))
    grads = [65536.0 * torch.ones_like(p) for p in before]
    hook.search.move(runner.iter, grads, scale=65536.0)
    assert hook.search.steps == steps + 1
    assert all(torch.isfinite(p).all() for p in hook.search.space.logits)


@RELAXATIONS.register_module(name='OwnRelaxation', force=True)
class OwnRelaxation(Softmax):
    """A user's, about which the search knows nothing: it is asked group by group."""

    def probs(self):
        return torch.softmax(self.logits, 0)


@pytest.mark.parametrize('joint', [False, True])
@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_a_relaxation_of_ones_own_is_searched_like_any(make, hook_of, mixing, joint):
    """The same formula in a class of its own gives the same search."""
    found = []
    for kind in ('Softmax', 'OwnRelaxation'):
        runner = make(
            search=dict(budgets=BOTH, penalties=PENALTIES, joint=joint, measure=0),
            **{'model.quant.mixing': mixing, 'model.quant.relaxation': dict(type=kind)},
            train_cfg=dict(max_epochs=1),
        )
        runner.train()
        hook = hook_of(runner)
        assert (hook.search.space.batch is None) == (kind == 'OwnRelaxation')
        assert hook.search.steps > 5
        found.append(torch.cat(hook.search.space.logits))
    torch.testing.assert_close(*found, rtol=0, atol=2e-2)


def test_history(make, hook_of):
    runner = make(search=dict(budgets=BOTH, measure=0))
    runner.train()
    hook = hook_of(runner)
    path = Path(runner.work_dir) / 'search_history.jsonl'
    header, *records = map(json.loads, path.read_text().splitlines())
    assert [b['type'] for b in header['budgets']] == ['BOPs', 'WeightBytes']
    for budget, table in zip(header['budgets'], hook.search.tables, strict=True):
        assert (budget['limit'], budget['min']) == (table.limit, table.min)
    assert list(header['groups']) == [g.name for g in hook.search.space.groups]
    assert [r['iter'] for r in records] == list(range(24))
    last = records[-1]
    assert last['loss'] > 0
    assert set(last['penalties']) == {'barrier', 'prob1'}
    for group in hook.search.space.groups:
        assert last['probs'][group.name] == pytest.approx(group.relaxation.probs())
    probs = hook.search.space.probs()
    assert last['expected'] == pytest.approx(
        [float(t.expected(probs)) for t in hook.search.tables]
    )
    policy = hook.search.space.policy(
        most_probable(hook.search.space, hook.search.tables)
    )
    assert last['realised'] == [t.of(policy) for t in hook.search.tables]
    scalar = runner.message_hub.get_scalar('train/BOPs_expected').current()
    assert scalar == pytest.approx(last['expected'][0] / hook.search.tables[0].limit)


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_what_is_written_is_the_net_that_was_chosen(make, hook_of, mixing):
    runner = make(
        search=dict(measure=2),
        **{'model.quant.mixing': mixing, 'train_cfg.max_epochs': 2},
    )
    runner.train()
    hook, folder = hook_of(runner), Path(runner.work_dir)
    policy = Policy.load(folder / 'policy.json')
    choice = [
        g.candidates.index(policy.layers[g.layers[0]]) for g in hook.search.space.groups
    ]
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad(), at_choice(runner.model, hook.search.space, choice):
        runner.model.eval()
        wanted = runner.model(x)
    saved = torch.load(folder / 'searched.pth', weights_only=True)
    assert saved['meta']['policy'] == {n: list(p) for n, p in policy.layers.items()}
    fixed = QuantModel('TinyNet', dict(policy=str(folder / 'policy.json')))
    fixed.load_state_dict(saved['state_dict'])
    with torch.no_grad():
        assert torch.allclose(fixed.eval()(x), wanted, atol=1e-6)
    budget = policy.meta['budgets'][0]
    assert budget['cost'] == hook.search.tables[0].of(policy) <= budget['limit']
    assert policy.meta['model'] == 'TinyNet' and policy.meta['seed'] == 3
    assert policy.meta['costs']['uniform']['name'] == 'W3A3'
    assert policy.meta['costs']['uniform']['bops'] == budget['limit']
    assert not [p for p in folder.iterdir() if p.name.startswith('.')]


def test_measuring_leaves_the_supernet_as_it_was(make, hook_of):
    runner = make(
        search=dict(measure=0),
        **{
            'model.quant.quantizer': dict(type='LinearQuantizer', range='scale_clip'),
            'train_cfg.max_epochs': 1,
        },
    )
    runner.train()
    hook, model = hook_of(runner), runner.model.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    mixings = [m.mixing for m in model.modules() if hasattr(m, 'mixing')]
    with torch.no_grad(), at_choice(model, hook.search.space, [0, 1, 2]):
        assert model.training
        model(**next(hook.batches), mode='loss')
        assert [g.relaxation.choice for g in hook.search.space.groups] == [0, 1, 2]
    assert not model.training
    assert [m.mixing for m in model.modules() if hasattr(m, 'mixing')] == mixings
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_budgets_may_be_texts(make, hook_of):
    runner = make(search=dict(budgets=['W3A3, 1 KB']), train_cfg=dict(max_epochs=1))
    runner.train()
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert [b['given'] for b in policy.meta['budgets']] == ['W3A3', '1 KB']
    assert all(b['cost'] <= b['limit'] for b in policy.meta['budgets'])
    assert [t.name for t in hook_of(runner).search.tables] == ['BOPs', 'WeightBytes']


def test_spending_the_rest_keeps_every_budget(make, hook_of):
    costs = []
    for measure in (0, 2):
        runner = make(search=dict(budgets=BOTH, measure=measure))
        runner.train()
        policy = Policy.load(Path(runner.work_dir) / 'policy.json')
        tables = hook_of(runner).search.tables
        costs.append([t.of(policy) / t.limit for t in tables])
    assert all(a <= b <= 1 for a, b in zip(*costs, strict=True))


def test_a_preview_stands_while_the_search_runs(make, monkeypatch):
    seen = []

    class Look(Hook):
        priority = 'LOWEST'

        def after_train_epoch(self, runner):
            seen.append(Policy.load(Path(runner.work_dir) / 'policy.json').layers)

    make(hooks=[Look()], search={}).train()
    assert len(seen) == 3 and all(len(layers) == 5 for layers in seen)


class TestBadInput:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(budgets=[]), r'SearchHook\.budgets: found none'),
            (dict(budgets=[dict(type='BOPs')]), r'limit is missing; accepted'),
            (dict(budgets=[dict(type='BOPs', limit=9)]), r'limit 9 has no unit'),
            (dict(budgets=[dict(type='BOPs', limit='9')]), r"limit '9' has no unit"),
            (dict(budgets=[dict(type='BOPs', limit='9 MB')]), r"unknown unit 'MB'"),
            (dict(budgets=[dict(type='Bops', limit='W4A4')]), r'near names: BOPs'),
            (
                dict(penalties=[dict(type='BarierPenalty')]),
                r"found 'BarierPenalty'; near names: BarrierPenalty",
            ),
            (dict(start='biassed'), r"found 'biassed'; accepted.*'biased'"),
            (dict(interval=0), r'SearchHook\.interval: found 0'),
            (dict(warmup=1.0), r'SearchHook\.warmup: found 1\.0'),
            (dict(warmup=-0.1), r'SearchHook\.warmup: found -0\.1'),
            (dict(warmup=0.7), r'SearchHook\.continuation: found 0\.6.*warmup=0\.7'),
        ],
    )
    def test_of_the_hook(self, make, change, message):
        with pytest.raises(ValueError, match=message):
            make(search=change)

    @pytest.mark.parametrize('held_out', [0, 1, 1.5])
    def test_share_held_out(self, make, held_out):
        message = f'SearchHook.held_out: found {held_out}; .*between 0 and 1'
        with pytest.raises(ValueError, match=message):
            make(search=dict(held_out=held_out))

    @pytest.mark.parametrize(
        ('held_out', 'message'),
        [(0.01, 'and 0 held out'), (0.99, 'into 0 to train')],
    )
    def test_empty_split(self, make, held_out, message):
        with pytest.raises(ValueError, match=message):
            make(search=dict(held_out=held_out)).train()

    @pytest.mark.parametrize(
        ('held_out', 'message'), [(0.05, '2 samples'), (0.95, 'the 2 samples left')]
    )
    def test_part_shorter_than_a_batch(self, make, held_out, message):
        runner = make(
            search=dict(held_out=held_out), **{'train_dataloader.drop_last': True}
        )
        with pytest.raises(ValueError, match=rf'held_out.*{message}'):
            runner.train()

    def test_impossible_budget_stops_before_training(self, make, tmp_path):
        budget = dict(type='BOPs', limit='10 BOPs', input_shape=(3, 8, 8))
        runner = make(search=dict(budgets=[budget]))
        with pytest.raises(ValueError, match=r'cannot be met: the candidates span \['):
            runner.train()
        assert not list(Path(runner.work_dir).glob('*.pth'))

    def test_budgets_that_exclude_each_other(self, make):
        budgets = [
            dict(type=kind, limit=dict(of=of, ratio=1.01), input_shape=(3, 8, 8))
            for kind, of in [('WeightBytes', 'W2A8'), ('ActivationBytes', 'W8A2')]
        ]
        runner = make(
            search=dict(budgets=budgets),
            **{'model.quant.candidates': [(2, 8), (8, 2), (8, 8)]},
        )
        with pytest.raises(ValueError, match='no choice of candidates meets all'):
            runner.train()

    def test_model_without_candidates(self, make):
        runner = make(
            search={},
            **{'model.quant': dict(_delete_=True, policy='W4A4')},
        )
        with pytest.raises(ValueError, match='has no layer to search'):
            runner.train()


def test_a_test_of_the_supernet_neither_splits_nor_searches(make, hook_of):
    runner = make(search={})
    runner.call_hook('before_run')  # as Runner.test does, with no training loop built
    runner.call_hook('before_val')
    assert isinstance(runner._train_loop, dict)
    assert hook_of(runner).search is None
