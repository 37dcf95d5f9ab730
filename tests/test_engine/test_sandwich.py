"""The passes of a step: their sum, their seeds, their teacher, their evaluation."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import METRICS, MODELS
from torch import nn
from torch.nn import functional as F

from mmmpq.engine import launch
from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.engine.distillation import LOSSES
from mmmpq.engine.hooks import SandwichHook
from mmmpq.models import ElasticMobileNetV3, apply_policy, calibrate_subnet
from mmmpq.subnets import SubnetSpace

ROOT = Path(__file__).resolve().parents[2]
QFA = dict(
    candidates=[(2, 2), (2, 4), (4, 2), (3, 3), (4, 4)],
    groups='layer',
    mixing='sampled',
    relaxation=dict(type='UniformSampling'),
    w_quantizer=dict(type='LSQQuantizer'),
    a_quantizer=dict(type='BatchQuantizer'),
)
SANDWICH = dict(type='mmmpq.SandwichHook', random=2, calibration=2)
VAL = dict(
    val_dataloader=dict(
        batch_size=8,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='TinyPictures', n=16, augment=False),
    ),
    val_cfg=dict(),
    val_evaluator=dict(type='MeanLogit'),
)


@MODELS.register_module(name='ElasticTiny', force=True)
class ElasticTiny(BaseModel):
    """Its subnets differ in depth, width and kernels too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone = ElasticMobileNetV3(
            depths=(1, 2),
            kernels=(3, 5),
            expands=(2, 3),
            stem=(4, 1),
            first=(4, 1),
            stages=((8, 2, False, 'HSwish'),),
            last=8,
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = self.fc(self.backbone(inputs)[0].mean((2, 3)))
        return dict(loss=F.cross_entropy(x, labels)) if mode == 'loss' else x


@METRICS.register_module(name='MeanLogit', force=True)
class MeanLogit(BaseMetric):
    """Shows any difference between two nets."""

    def process(self, data_batch, data_samples):
        self.results += [float(x.abs().sum()) for x in data_samples]

    def compute_metrics(self, results):
        return dict(logit=sum(results) / len(results))


class Noting(Hook):
    """What the loop hands over, and the gradients of every optimizer step."""

    priority = 'VERY_HIGH'

    def __init__(self, keep=99):
        self.keep = keep
        self.batches, self.before, self.grads = [], [], []

    def before_train(self, runner):
        named = dict(unwrapped(runner).named_parameters())
        runner.optim_wrapper.optimizer.register_step_pre_hook(
            lambda *_: self.grads.append(
                {n: p.grad.clone() for n, p in named.items() if p.requires_grad}
            )
        )

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch)
        if len(self.before) <= self.keep:
            self.before.append(copy.deepcopy(unwrapped(runner)))


@pytest.fixture
def train(make):
    """Train a TinyNet of subnets; ``sandwich`` changes the hook."""

    def build(sandwich=None, hooks=(), quant=None, go=True, **changes):
        hooks = [dict(SANDWICH, **(sandwich or {})), *hooks]
        changes = {'model.quant': {**QFA, **(quant or {})}, **changes}
        runner = make(hooks=hooks, **changes)
        runner.model.drop.p = 0.0
        if go:
            runner.train()
        return runner

    return build


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, SandwichHook))


def task_loss(logits, batch):
    return F.cross_entropy(logits, batch['labels'])


def gradients(model, batch, subnets, loss=task_loss):
    """Of each subnet's loss alone, summed."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    space = SubnetSpace(model)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for subnet in subnets:
        space.activate(subnet)
        model.zero_grad()
        loss(model(batch['inputs']), batch).backward()
        for n, p in model.named_parameters():
            total[n] += 0 if p.grad is None else p.grad
    return total


@pytest.mark.parametrize('accumulate', [1, 2, 3])
def test_a_step_has_the_sum_of_the_gradients_of_all_passes(train, accumulate):
    noting = Noting()
    runner = train(
        hooks=[noting],
        **{
            'train_cfg.max_epochs': 1,
            'optim_wrapper.accumulative_counts': accumulate,
        },
    )
    hook, count = hook_of(runner), len(noting.batches)
    assert count == 10 and runner.optim_wrapper._inner_count == count
    starts = range(0, count, accumulate)
    assert len(noting.grads) == len(starts)
    for step, start in list(enumerate(starts))[:2] + [(len(starts) - 1, starts[-1])]:
        here = range(start, min(start + accumulate, count))
        parts = [
            gradients(noting.before[i], noting.batches[i], hook.subnets(i))
            for i in here
        ]
        for name, grad in noting.grads[step].items():
            expected = sum(p[name] for p in parts) / len(here)
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


def test_subnets_of_an_iteration(train):
    hook = hook_of(train(go=False))
    hook.space, hook.seed = SubnetSpace(train(go=False).model), 3
    hook.generator = torch.Generator()
    drawn = [hook.subnets(i) for i in range(40)]
    assert drawn == [hook.subnets(i) for i in range(40)]
    assert all(len(subnets) == 4 for subnets in drawn)
    for end in (0, -1):
        assert all(len(set(subnets[end].values())) == 1 for subnets in drawn)
        precisions = {next(iter(subnets[end].values())) for subnets in drawn}
        assert precisions == {(2, 2), (3, 3), (4, 4)}
    assert any(len(set(s[1].values())) > 1 for s in drawn)
    hook.one_precision, hook.one_precision_ends = True, False
    for subnets in map(hook.subnets, range(20)):
        assert all(len(set(s.values())) == 1 for s in subnets)
        assert set(subnets[0].values()) == {(2, 2)}
        assert set(subnets[-1].values()) == {(4, 4)}


def test_the_ends_of_an_elastic_net_have_one_random_kernel():
    hook = SandwichHook(random=1)
    hook.space, hook.seed = SubnetSpace(ElasticTiny()), 0
    hook.generator = torch.Generator()
    kernels = {0: set(), -1: set()}
    for subnets in map(hook.subnets, range(20)):
        for end, extreme in ((0, min), (-1, max)):
            subnet = subnets[end]
            own = {v for gene, v in subnet.items() if gene.endswith('kernel')}
            assert len(own) == 1
            kernels[end] |= own
            for gene in (g for g in subnet if not g.endswith('kernel')):
                assert subnet[gene] == extreme(hook.space.genes[gene])
    assert kernels == {0: {3, 5}, -1: {3, 5}}


LOOPS = {
    'epochs': {'train_cfg.max_epochs': 2},
    'iterations': {
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=15),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=5),
    },
}


@pytest.mark.parametrize('loop', LOOPS)
def test_a_resumed_run_ends_as_one_that_was_never_killed(train, loop, tmp_path):
    whole = train(**LOOPS[loop])
    folder = tmp_path / 'killed'
    kill = dict(type='KillHook', at=13)
    with pytest.raises(KeyboardInterrupt):
        train(hooks=[kill], work_dir=folder, **LOOPS[loop])
    resumed = train(work_dir=folder, resume=True, **LOOPS[loop])
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(
        torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True)
    )


# --- evaluation -----------------------------------------------------------------------


def test_validation_calibrates_and_reports_several_subnets(train):
    runner = train(**{'train_cfg.max_epochs': 1}, **VAL)
    scalars = runner.message_hub.log_scalars
    found = {k: scalars[f'val/{k}'].current() for k in ('logit', 'W2A2/logit')}
    assert 'val/W3A3/logit' in scalars and 'val/W4A4/logit' not in scalars
    space, batches = SubnetSpace(runner.model), train_batches(runner, 2)
    inputs = torch.stack(
        [runner.val_dataloader.dataset[i]['inputs'] for i in range(16)]
    )
    for name, precision in (('logit', (4, 4)), ('W2A2/logit', (2, 2))):
        space.activate(space.largest(precision))
        calibrate_subnet(runner.model, batches)
        with torch.no_grad():
            logits = runner.model.eval()(inputs)
        assert found[name] == pytest.approx(float(logits.abs().sum() / 16), rel=1e-4)
    assert found['logit'] != found['W2A2/logit']


def test_a_test_of_the_supernet_reports_the_same_subnets(train):
    test = {k.replace('val_', 'test_'): v for k, v in VAL.items()}
    metrics = train(go=False, **test).test()
    assert set(metrics) == {'logit', 'W2A2/logit', 'W3A3/logit'}
    assert len(set(metrics.values())) == 3


def test_validation_leaves_training_alone(train):
    two = {'train_cfg.max_epochs': 2}
    every = train(**{'train_cfg.val_interval': 1}, **two, **VAL)
    never = train(**two)
    pairs = zip(every.model.parameters(), never.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_policy_of_the_supernet_is_a_fixed_net_with_its_statistics(train):
    runner = train(**{'train_cfg.max_epochs': 1})
    space = SubnetSpace(runner.model)
    subnet = space.sample(torch.Generator().manual_seed(1))
    space.activate(subnet)
    calibrate_subnet(runner.model, train_batches(runner, 3))
    x = torch.randn(5, 3, 8, 8)
    expected = runner.model.eval()(x)
    policy = space.policy(subnet)
    fixed = apply_policy(copy.deepcopy(runner.model), policy)
    assert torch.equal(fixed(x), expected)
    state = fixed.state_dict()
    other = train(
        go=False, quant=dict(candidates=None, policy=policy, groups='residual_block')
    ).model
    assert not other.load_state_dict(state, strict=False).unexpected_keys
    assert torch.equal(other.eval()(x), expected)


# --- the teacher ----------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path):
    """A float net, and how a config names it."""

    def build(width=6, classes=4):
        net = MODELS.get('TinyNet')(width)
        net.fc = nn.Linear(2 * width, classes)
        config, checkpoint = tmp_path / 'teacher.py', tmp_path / 'teacher.pth'
        config.write_text(f"model = dict(type='TinyNet', width={width})\n")
        torch.save(dict(state_dict=net.state_dict()), checkpoint)
        return net.eval(), dict(config=str(config), checkpoint=str(checkpoint))

    return build


def test_the_teacher_is_one_more_loss_and_no_part_of_the_model(train, teacher):
    net, cfg = teacher()
    noting = Noting()
    runner = train(
        dict(teacher=cfg, distill=0.5, match=dict(fc='soft_cross_entropy')),
        hooks=[noting],
        **{'train_cfg.max_epochs': 1},
    )
    plain = train(go=False).model
    assert runner.model.state_dict().keys() == plain.state_dict().keys()
    saved = torch.load(Path(runner.work_dir) / 'epoch_1.pth', weights_only=True)
    assert saved['state_dict'].keys() == plain.state_dict().keys()
    model, batch = noting.before[-1], noting.batches[-1]
    targets = net(batch['inputs']).softmax(1).detach()
    losses = []  # that of the largest net is the last and is logged

    def loss(logits, batch):
        losses.append(-0.5 * (targets * logits.log_softmax(1)).sum(1).mean())
        return task_loss(logits, batch) + losses[-1]

    expected = gradients(model, batch, hook_of(runner).subnets(9), loss)
    for name, grad in noting.grads[-1].items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5)
    found = runner.message_hub.log_scalars['train/loss_distill'].current()
    assert found == pytest.approx(losses[-1].item(), rel=1e-4)


def test_the_teacher_sees_a_batch_once(train, teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(
        'mmmpq.engine.distillation.load_teacher',
        lambda cfg: Counting(teacher()[0], calls),
    )
    match = dict(fc='l2')
    train(dict(teacher=dict(), match=match), **{'train_cfg.max_epochs': 1})
    assert len(calls) == 10  # of four passes each, and calibration


class Counting(nn.Module):
    def __init__(self, net, calls):
        super().__init__()
        self.fc = net.fc
        self.__dict__['net'], self.calls = net, calls

    def forward(self, inputs, labels, mode):
        self.calls.append(inputs)
        return self.net(inputs)


def test_distillation_losses():
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    kl = F.kl_div(s.log_softmax(1), t.softmax(1), reduction='batchmean')
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(LOSSES['soft_cross_entropy'](s, t), kl + entropy)
    expected = (s - t).square().sum() / t.square().sum()
    torch.testing.assert_close(LOSSES['l2'](s, t), expected)
    torch.testing.assert_close(LOSSES['l2'](9 * s, 9 * t), expected)
    d = (s - t).abs()
    expected = torch.where(d < 1, d.square() / 2, d - 0.5).mean()
    torch.testing.assert_close(LOSSES['smooth_l1'](s, t), expected)


CE = dict(fc='soft_cross_entropy')


@pytest.mark.parametrize(
    'match, change, error, message',
    [
        (CE, dict(config='none.py'), FileNotFoundError, r'teacher\.config: .*none\.py'),
        (CE, dict(checkpoint='no.pth'), FileNotFoundError, r'teacher\.checkpoint'),
        (CE, dict(weights='x.pth'), KeyError, 'config and checkpoint'),
        (None, {}, ValueError, 'match: found nothing of TinyNet to compare'),
        (dict(fd='l2'), {}, ValueError, "no module 'fd'; near names: fc"),
        (dict(fc='l3'), {}, ValueError, "found 'l3' for fc; accepted are soft_cross"),
        (dict(convs='l2'), {}, ValueError, r'its convs gives \[\]'),
    ],
)
def test_teachers_that_cannot_be(train, teacher, match, change, error, message):
    cfg = {**teacher()[1], **change}
    with pytest.raises(error, match=message):
        train(dict(teacher=cfg, match=match))


def test_a_teacher_of_other_classes_or_shapes(train, teacher, tmp_path):
    _, cfg = teacher(classes=7)
    with pytest.raises(ValueError, match=r'teacher\.checkpoint: .*another model: .*fc'):
        train(dict(teacher=cfg, match=CE))
    _, cfg = teacher(width=8)
    match = {'convs.1': 'l2'}
    expected = (
        r'convs\.1 gives \[\(4, 8, 8, 8\)\], that of the model \[\(4, 6, 8, 8\)\]'
    )
    with pytest.raises(ValueError, match=expected):
        train(dict(teacher=cfg, match=match))


# --- what else a Runner has -----------------------------------------------------------


def test_learned_ranges_start_from_calibration(train):
    kill = dict(type='KillHook', at=0)
    quant = dict(a_quantizer=dict(type='LinearQuantizer'))
    runner = train(hooks=[kill], quant=quant, go=False)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    ranges = [m.a_quantizer.range for m in runner.model.convs[1:]]
    assert all(bool((r != 1).all()) for r in ranges)


def test_a_loss_that_is_no_number_stops_the_run(train):
    runner = train(go=False)
    with torch.no_grad():
        runner.model.convs[2].weight[0] = float('nan')
    with pytest.raises(FloatingPointError, match=r'iteration 0; .*convs\.2'):
        runner.train()


@pytest.mark.parametrize('key', ['random', 'calibration'])
def test_numbers_that_are_too_small(train, key):
    with pytest.raises(ValueError, match=rf'SandwichHook\.{key}: found -1'):
        train({key: -1})


def test_several_optimizers_are_refused(train):
    runner = train(go=False)
    hook = hook_of(runner)
    one = OptimWrapper(torch.optim.SGD(runner.model.parameters(), 0.1))
    runner.optim_wrapper = OptimWrapperDict(one=one)
    with pytest.raises(ValueError, match='SandwichHook accepts one optimizer'):
        hook.before_train(runner)


# --- two processes --------------------------------------------------------------------

RANK = """
import importlib.util, sys
import torch, torch.distributed as dist
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
tiny = load('tiny', sys.argv[1])
tests = load('tests', sys.argv[2])
from mmengine.config import Config
from mmmpq.engine import launch
from mmmpq.engine.hooks import SandwichHook
from mmmpq.engine.distillation import LOSSES
from mmmpq.quantizers import BatchQuantizer

def main():
    cfg = Config(dict(tiny.BASE, **tests.VAL))
    cfg.merge_from_dict({
        'model.quant': tests.QFA, 'model.base_type': sys.argv[4],
        'launcher': 'pytorch', 'work_dir': sys.argv[3],
        'custom_hooks': [dict(tests.SANDWICH)], 'train_cfg.max_epochs': 2,
        'optim_wrapper.accumulative_counts': 2,
        'randomness.diff_rank_seed': True, 'train_cfg.val_interval': 2})
    runner = launch.build_runner(cfg)
    drawn, subnets = [], SandwichHook.subnets
    def noting(hook, iteration):
        found = subnets(hook, iteration)
        drawn.extend(found)
        return found
    SandwichHook.subnets = noting
    noted = tests.Noting(keep=1)
    runner.register_hook(noted)
    for module in runner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    runner.train()
    SandwichHook.subnets = subnets
    hook = tests.hook_of(runner)
    parts = [tests.gradients(noted.before[i], noted.batches[i], hook.subnets(i))
             for i in (0, 1)]
    for name, grad in noted.grads[0].items():
        mean = (parts[0][name] + parts[1][name]) / 2
        dist.all_reduce(mean)
        torch.testing.assert_close(grad, mean / 2, rtol=1e-4, atol=1e-5)
    found = dict(
        drawn=drawn, iters=runner.iter,
        weights=[p.detach() for p in runner.model.parameters()],
        extremes=[m.extremes for m in runner.model.modules()
                  if isinstance(m, BatchQuantizer)],
        norms=[b for n, b in runner.model.named_buffers() if 'running_' in n])
    torch.save(found, f'{sys.argv[3]}/rank{dist.get_rank()}.pt')

launch.run(main)
"""


@pytest.mark.skipif(launch.get_device() != 'cpu', reason='about a CPU')
@pytest.mark.parametrize('net', ['TinyNet', 'ElasticTiny'])
def test_two_processes_train_and_calibrate_alike(net, tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    files = [Path(__file__).with_name('conftest.py'), __file__, tmp_path, net]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
        + [f'--master_port={port}', str(script), *map(str, files)],
        env=dict(
            os.environ, OMP_NUM_THREADS='1', MMMPQ_TRACEBACK='1', PYTHONPATH=str(ROOT)
        ),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = (torch.load(tmp_path / f'rank{i}.pt', weights_only=False) for i in (0, 1))
    assert a['iters'] == 10  # 40 pictures, 2 x 4, twice
    assert a['drawn'] == b['drawn'] and len(a['drawn']) == 4 * 10
    for key in ('weights', 'extremes', 'norms'):
        assert all(map(torch.equal, a[key], b[key])), key
    assert all(e.any() for e in a['extremes'])
