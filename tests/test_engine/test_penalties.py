"""Searches that a penalty steers: EdMIPS' and DNAS', with a budget and without."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmmpq.engine.hooks import SearchHook
from mmmpq.policy import Policy
from mmmpq.search import Search, problem
from mmmpq.search.logits import learning
from mmmpq.visualization import write_report

SHAPE = (3, 8, 8)
BUDGET = [dict(type='BOPs', limit='W3A3', input_shape=SHAPE)]
COMPLEXITY = dict(
    type='ComplexityPenalty', eta=0.1, cost=dict(type='BOPs', input_shape=SHAPE)
)
AWARE = dict(
    type='CostAwareLoss', beta=0.1, gamma=0.9, cost=dict(type='BOPs', input_shape=SHAPE)
)
SGD = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
EDMIPS = dict(
    budgets=[], joint=True, warmup=0.0, penalties=[COMPLEXITY], optimizer=SGD, measure=0
)
DNAS = dict(budgets=[], penalties=[AWARE], samples=4, measure=1)
GRID = [(w, a) for w in (2, 3, 4) for a in (2, 4)]
FACTORISED = {
    'model.quant.candidates': GRID,
    'model.quant.relaxation': dict(type='Softmax', factorised=True, init=0.01),
    'model.quant.mixing': 'composite',
}
GUMBEL = {
    'model.quant.relaxation': dict(type='GumbelSoftmax', temperature=5.0, anneal=0.1),
    'model.quant.mixing': 'outputs',
}
SYSTEMS = {'EdMIPS': (EDMIPS, FACTORISED), 'DNAS': (DNAS, GUMBEL)}


@pytest.mark.parametrize('budgets', [[], BUDGET], ids=['penalty alone', 'W3A3'])
@pytest.mark.parametrize(('search', 'quant'), SYSTEMS.values(), ids=list(SYSTEMS))
def test_whole_search(make, hook_of, monkeypatch, search, quant, budgets):
    runner = make(search={**search, 'budgets': budgets}, **quant)
    runner.train()
    hook, folder = hook_of(runner), Path(runner.work_dir)
    assert hook.search.steps > 0 and any(p.any() for p in hook.search.space.logits)
    policy = Policy.load(folder / 'policy.json')
    assert len(policy.layers) == 5
    assert all(t.of(policy) <= t.limit for t in hook.search.tables)
    if not budgets:
        assert hook.search.tables == () and policy.meta['budgets'] == []
        if not hook.samples:
            argmax = [int(p.argmax()) for p in hook.search.space.probs()]
            assert policy.layers == hook.search.space.policy(argmax).layers
    assert policy.meta['input_shape'] == list(SHAPE)
    costs = policy.meta['costs']
    assert ('uniform' in costs) == bool(budgets)
    assert costs['searched']['bops'] == hook.search.counted[-1].of(policy)
    assert costs['float']['bops'] > costs['searched']['bops']
    header, *records = map(
        json.loads, (folder / 'search_history.jsonl').read_text().splitlines()
    )
    assert len(header['budgets']) == len(budgets)
    assert len(records[-1]['expected']) == len(records[-1]['bound']) == len(budgets)
    (name,) = hook.search.objective.names
    assert records[-1]['penalties'][name] > 0
    page = write_report(folder)
    assert (page.parent / 'cost.png').is_file() == bool(budgets)
    assert (page.parent / 'penalties.png').is_file()
    assert ('Budget</h2>' in page.read_text()) == bool(budgets)
    assert torch.load(folder / 'searched.pth', weights_only=True)['state_dict']


def test_a_strong_penalty_ends_with_the_cheapest_and_none_does_not(make, hook_of):
    found = []
    for eta in (0.0, 100.0):
        runner = make(search={**EDMIPS, 'penalties': [dict(COMPLEXITY, eta=eta)]})
        runner.train()
        hook = hook_of(runner)
        (prices,) = hook.search.counted
        probs = hook.search.space.probs()
        found.append(float(prices.expected(probs).detach()) / prices.min)
    assert found[1] < 1.05 < found[0]


def test_bounds_start_and_projection_rest_without_a_budget(make, hook_of):
    """Nothing but the optimizer moves the logits, whatever ``start`` says."""
    runner = make(
        search=dict(EDMIPS, start='biased', warmup=0.95),
        **{'model.quant.relaxation': dict(type='Softmax', init=0.3)},
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    hook = hook_of(runner)
    assert hook.search.steps == 0 and hook.search.bounds(runner.iter) == []
    assert all((p == 0.3).all() for p in hook.search.space.logits)


# --- gradients ------------------------------------------------------------------------


def gradients(search, iteration, *losses):
    """Of the losses, the factor and the penalty, each alone."""
    logits = search.space.logits
    with learning(logits):
        terms = search.penalty(iteration)
        scalars = [*losses, terms.factor, terms.penalty]
        grads = [torch.autograd.grad(x, logits, retain_graph=True) for x in scalars]
    return terms.factor.detach(), *grads


def test_architecture_step_is_the_gradient_of_the_product(make, hook_of, monkeypatch):
    """d(L · F + P) = F dL + L dF + dP, all on the same batch."""
    wanted, compared = [], []
    step, move = Search.step, Search.move

    def expect(self, iteration, loss_of, scale):
        state = torch.get_rng_state()  # of dropout
        batch = next(hook_of(runner).batches)
        with learning(self.space.logits):
            loss = self.model(**batch, mode='loss')['loss']
            factor, *grads = gradients(self, iteration, loss)
        wanted[:] = [
            factor * task + loss.detach() * slope + more
            for task, slope, more in zip(*grads, strict=True)
        ]
        torch.set_rng_state(state)
        step(self, iteration, lambda: self.model(**batch, mode='loss')['loss'], scale)

    def compare(self, iteration, grads, scale):
        for grad, each in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, each, atol=1e-6, rtol=1e-4)
        compared.append(len(grads))
        move(self, iteration, grads, scale)

    monkeypatch.setattr(Search, 'step', expect)
    monkeypatch.setattr(Search, 'move', compare)
    runner = make(
        search=dict(budgets=[], penalties=[AWARE, COMPLEXITY], measure=0),
        **{'model.quant.mixing': 'outputs'},
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    assert compared == [3] * 7


@pytest.mark.parametrize('accumulated', [1, 3])
def test_joint_step_is_the_gradient_of_the_product(
    make, hook_of, monkeypatch, accumulated
):
    seen, compared = [], []

    class Task(Hook):
        """Loss and task gradient of the batch that is about to be used."""

        priority = 'LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            hook, state = hook_of(runner), torch.get_rng_state()
            hook.search.handed.release()
            loss = runner.model(**data_batch, mode='loss')['loss']
            grads = torch.autograd.grad(loss, hook.search.space.logits)
            hook.search.hand(learn=True)
            seen.append((float(loss.detach()), grads))
            torch.set_rng_state(state)

    move = Search.move

    def compare(self, iteration, grads, scale):
        factor, slope, more = gradients(self, iteration)
        loss = sum(x for x, _ in seen) / len(seen)
        for i, grad in enumerate(grads):
            task = sum(g[i] for _, g in seen) / len(seen)
            wanted = factor * task + loss * slope[i] + more[i]
            torch.testing.assert_close(grad, wanted, atol=2e-5, rtol=1e-3)
        compared.append(len(seen))
        seen.clear()
        move(self, iteration, grads, scale)

    monkeypatch.setattr(Search, 'move', compare)
    make(
        hooks=[Task()],
        search=dict(
            EDMIPS, penalties=[AWARE, COMPLEXITY], optimizer=dict(type='SGD', lr=0.01)
        ),
        optim_wrapper=dict(accumulative_counts=accumulated),
        train_cfg=dict(max_epochs=1),
    ).train()
    assert set(compared) <= {accumulated, 10 % accumulated}
    assert len(compared) == math.ceil(10 / accumulated)


def test_joint_without_any_gradient_of_a_penalty(make, hook_of):
    """No penalty at all, under a budget: the task's gradient alone."""
    runner = make(search=dict(joint=True, penalties=[], measure=0))
    runner.train()
    assert hook_of(runner).search.steps > 0


# --- optimizer, schedule, temperature -------------------------------------------------


@pytest.mark.parametrize('joint', [False, True])
def test_weight_decay_of_the_logits(make, hook_of, joint, monkeypatch):
    """SGD's own, with gradients of zero: theta · (1 - lr · decay) a step."""
    monkeypatch.setattr(
        'mmmpq.search.search.mean_gradients',
        lambda logits, grads, scale: [torch.zeros_like(p) for p in logits],
    )
    runner = make(
        search=dict(
            EDMIPS,
            joint=joint,
            optimizer=dict(type='SGD', lr=0.5, weight_decay=0.1),
            scheduler=dict(type='StepLR', step_size=4, gamma=0.1),
        ),
        **{'model.quant.relaxation': dict(type='Softmax', init=1.0)},
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    hook = hook_of(runner)
    wanted = math.prod(1 - 0.05 * 0.1 ** (i // 4) for i in range(hook.search.steps))
    assert hook.search.steps == (10 if joint else 8)
    for logits in hook.search.space.logits:
        assert logits.tolist() == pytest.approx([wanted] * 4, rel=1e-5)
    assert hook.search.optimizer.get_lr()['lr'][0] == pytest.approx(0.5 * 0.1**2)


@pytest.mark.parametrize(
    ('search', 'accumulated', 'per_epoch'),
    [({}, 1, 10), (dict(interval=5), 1, 2), ({}, 2, 5), (dict(joint=False), 1, 8)],
)
def test_schedule_by_epoch(make, hook_of, search, accumulated, per_epoch):
    runner = make(
        search={
            **EDMIPS,
            **search,
            'scheduler': dict(type='MultiStepLR', milestones=[1, 2], by_epoch=True),
        },
        optim_wrapper=dict(accumulative_counts=accumulated),
    )
    runner.train()
    hook = hook_of(runner)
    assert sorted(hook.search.scheduler.milestones) == [per_epoch, 2 * per_epoch]
    assert hook.search.steps == 3 * per_epoch
    assert hook.search.optimizer.get_lr()['lr'][0] == pytest.approx(0.05 * 0.01)


class Temperatures(Hook):
    """The epoch, temperature and noise that each iteration computes with."""

    priority = 'LOW'

    def __init__(self, hook_of):
        self.hook_of, self.seen = hook_of, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        relaxations = [g.relaxation for g in self.hook_of(runner).search.space.groups]
        noise = torch.cat([r.noise for r in relaxations])
        taus = {r.tau for r in relaxations}
        self.seen.append((relaxations[0].epoch, taus, noise))


ITERATIONS = {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=20)}


@pytest.mark.parametrize('loop', [{}, ITERATIONS], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('joint', [False, True])
def test_temperature_follows_the_epochs(make, hook_of, loop, joint):
    """Also in a loop that has none: iterations over the length of its loader."""
    watch = Temperatures(hook_of)
    runner = make(
        hooks=[watch], search=dict(DNAS, joint=joint, samples=0), **{**GUMBEL, **loop}
    )
    runner.train()
    length = 10 if joint else 8
    assert len(watch.seen) == (20 if loop else 3 * length)
    for i, (epoch, taus, _) in enumerate(watch.seen):
        assert epoch == i / length
        (tau,) = taus
        assert tau == pytest.approx(5.0 * math.exp(-0.1 * i / length))
    noises = [noise for _, _, noise in watch.seen]
    assert not any(torch.equal(a, b) for a, b in pairwise(noises))


def test_noise_is_the_same_after_a_resume(make, hook_of, tmp_path):
    watches = [Temperatures(hook_of) for _ in range(3)]
    make(hooks=[watches[0]], search=DNAS, **GUMBEL).train()
    folder = tmp_path / 'killed'
    killed = make(
        hooks=[watches[1], dict(type='KillHook', at=12)],
        search=DNAS,
        work_dir=folder,
        **GUMBEL,
    )
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    make(
        hooks=[watches[2]], search=DNAS, work_dir=folder, resume=True, **GUMBEL
    ).train()
    whole, _, resumed = (w.seen for w in watches)
    assert len(resumed) == len(whole) - 8
    for (e, t, a), (f, u, b) in zip(whole[8:], resumed, strict=True):
        assert e == f and t == u and torch.equal(a, b)


# --- samples --------------------------------------------------------------------------


@pytest.mark.parametrize('budgets', [[], BUDGET], ids=['none', 'W3A3'])
@pytest.mark.parametrize('joint', [False, True])
def test_the_best_sample_is_kept(make, hook_of, monkeypatch, budgets, joint):
    """Losses made up: the last choice that is measured is the best."""
    tried = []

    def measured(hook, runner):
        def loss_of():
            tried.append([g.relaxation.choice for g in hook.search.space.groups])
            return 5.0 - len(tried) if len(tried) < 4 else 9.0

        return loss_of

    monkeypatch.setattr(SearchHook, '_loss_of_choice', measured)
    runner = make(
        search=dict(DNAS, budgets=budgets, joint=joint, measure=0, samples=12),
        **GUMBEL,
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    hook = hook_of(runner)
    assert 4 < len(tried) <= 13
    assert len({tuple(c) for c in tried}) == len(tried)
    policies = [hook.search.space.policy(c) for c in tried]
    assert all(t.of(p) <= t.limit for t in hook.search.tables for p in policies)
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert policy.layers == policies[2].layers


def test_a_sample_without_a_finite_loss_is_not_taken(make, monkeypatch):
    losses = iter([3.0, float('nan'), float('-inf'), 2.0, *[4.0] * 9])
    tried = []

    def measured(hook, runner):
        def loss_of():
            choice = [g.relaxation.choice for g in hook.search.space.groups]
            tried.append(hook.search.space.policy(choice))
            return next(losses)

        return loss_of

    monkeypatch.setattr(SearchHook, '_loss_of_choice', measured)
    runner = make(search=dict(DNAS, samples=12), **GUMBEL, train_cfg=dict(max_epochs=1))
    runner.train()
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert policy.layers == tried[3].layers


@pytest.mark.parametrize('joint', [False, True])
def test_samples_are_measured_on_real_batches(make, hook_of, joint, monkeypatch):
    """BatchNorm in train mode, the supernet as it was afterwards; the rest of a budget
    is spent on top of the best sample."""
    modes = []
    real = problem.best_sample

    def looking(space, choices, loss_of, *args):
        net = runner.model
        before = {k: v.clone() for k, v in net.state_dict().items()}
        handle = net.norms[0].register_forward_hook(
            lambda m, i, o: modes.append(m.training)
        )
        found = real(space, choices, loss_of, *args)
        handle.remove()
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert loss_of(found) <= loss_of(choices[0])
        return found

    monkeypatch.setattr(problem, 'best_sample', looking)
    runner = make(
        search=dict(DNAS, budgets=BUDGET, joint=joint, samples=6, measure=2), **GUMBEL
    )
    runner.train()
    assert len(modes) > 2 and all(modes)
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert all(t.of(policy) <= t.limit for t in hook_of(runner).search.tables)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(penalties=[]), r'SearchHook\.budgets: found none.*CostAwareLoss'),
        (
            dict(penalties=[dict(type='Prob1Regularizer')]),
            r"SearchHook\.budgets: found none.*found \['prob1'\]",
        ),
        (
            dict(penalties=[dict(type='ComplexityPenalty')]),
            r'ComplexityPenalty\.eta is missing',
        ),
        (
            dict(penalties=[dict(AWARE, beta=-1)]),
            r'CostAwareLoss\.beta: found -1',
        ),
        (
            dict(penalties=[dict(COMPLEXITY, normaliser='unifrom')]),
            r"found 'unifrom'; near names: uniform",
        ),
        (dict(samples=-1), r'SearchHook\.samples: found -1'),
    ],
)
def test_bad_input(make, change, message):
    with pytest.raises(ValueError, match=message):
        make(search=dict(dict(budgets=[], penalties=[COMPLEXITY]), **change))
