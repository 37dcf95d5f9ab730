"""Optimizer and schedule of the logits, apart from a search."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmmpq.search.logits import (
    build_optimizer,
    build_scheduler,
    loss_scale,
    mean_gradients,
    step_logits,
)


@pytest.fixture
def logits():
    return [nn.Parameter(torch.ones(n), requires_grad=False) for n in (2, 3)]


@pytest.mark.parametrize(
    ('cfg', 'wanted'),
    [
        (dict(type='CosineAnnealingLR'), dict(T_max=21)),
        (dict(type='CosineAnnealingLR', T_max=7), dict(T_max=7)),
        (dict(type='CosineAnnealingLR', by_epoch=True), dict(T_max=24)),  # 3 epochs
        (dict(type='StepLR', step_size=2), dict(step_size=2)),
        (dict(type='StepLR', step_size=2, by_epoch=True), dict(step_size=16)),
    ],
)
def test_schedules(logits, cfg, wanted):
    optimizer = build_optimizer(dict(type='SGD', lr=1.0), logits, None)
    before = dict(cfg)
    scheduler = build_scheduler(cfg, optimizer, steps=20.5, per_epoch=8.0)
    assert {key: getattr(scheduler, key) for key in wanted} == wanted
    assert not scheduler.by_epoch and cfg == before
    assert build_scheduler(None, optimizer, 1, 1) is None


def test_a_step(logits):
    grads = mean_gradients(logits, [None, torch.full((3,), 8.0)], scale=4.0)
    assert [g.tolist() for g in grads] == [[0, 0], [2, 2, 2]]
    cfg = dict(type='SGD', lr=0.5, weight_decay=0.2)
    step_logits(build_optimizer(cfg, logits, None), logits, grads)
    assert [p.tolist() for p in logits] == [
        pytest.approx([0.9] * 2),
        pytest.approx([-0.1] * 3),
    ]
    assert all(p.grad is None and not p.requires_grad for p in logits)


def test_an_overflow_gives_no_gradient(logits):
    grads = [torch.ones(2), torch.tensor([1.0, float('inf'), 1.0])]
    assert mean_gradients(logits, grads, scale=2.0) is None
    assert mean_gradients(logits, grads, scale=1.0) is not None  # the loss says so
    optimizer = torch.optim.SGD(logits, lr=0.1)
    assert loss_scale(OptimWrapper(optimizer), torch.device('cpu')) == 1.0
