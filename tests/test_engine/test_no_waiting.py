"""A search iteration on a device that cannot be read, and how much it launches there.

Tensors of the device 'meta' have shapes and no values: whoever reads one, or asks the
device something, gets an exception.
"""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmmpq.layers import Softmax
from mmmpq.search.logits import build_optimizer
from mmmpq.search.reach import Reach
from mmmpq.transfer import Fetch

BUDGETS = [
    dict(type=kind, limit='W3A3', input_shape=(3, 8, 8))
    for kind in ('BOPs', 'WeightBytes')
]
COST = dict(type='BOPs', input_shape=(3, 8, 8))
PENALTIES = [
    dict(type='BarrierPenalty'),
    dict(type='Prob1Regularizer', ramp=(0.0, 0.1)),
    dict(type='ComplexityPenalty', eta=0.1, cost=COST),
    dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=COST),
]
GRID = [(w, a) for w in (2, 3, 4) for a in (2, 4)]
QUANTS = {
    'composite': {},
    'factorised': {
        'model.quant.candidates': GRID,
        'model.quant.relaxation': dict(type='Softmax', factorised=True),
    },
    'outputs': {
        'model.quant.mixing': 'outputs',
        'model.quant.relaxation': dict(type='GumbelSoftmax', anneal=0.1),
    },
    'sampled': {'model.quant.mixing': 'sampled'},
}


@MODELS.register_module(name='DeepNet', force=True)
class DeepNet(BaseModel):
    """A stem, ``depth`` searchable convs and a head."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        sizes = [3, *[4] * (depth + 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairwise(sizes))
        self.fc = nn.Linear(4, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        stem, *convs = self.convs
        x = stem(inputs)
        for conv in convs:
            x = x + 0.1 * conv(x).relu()
        x = self.fc(x.mean((2, 3)))
        return dict(loss=F.cross_entropy(x, labels)) if mode == 'loss' else x


VIEWS = {
    *('detach', 'expand', 'lift_fresh', 'select', 'slice', 'split_with_sizes'),
    *('squeeze', 'squeeze_', 't', 'unbind', 'unsqueeze', 'view'),
}


class Launches(TorchDispatchMode):
    """Counts the operations of everything but the model that are no views."""

    def __init__(self):
        super().__init__()
        self.names, self.paused = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.paused and name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def pause(self):
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def without(self, function):
        def call(*args, **kwargs):
            with self.pause():
                return function(*args, **kwargs)

        return call


@pytest.fixture
def iteration(make, hook_of, monkeypatch):
    """The operations of one iteration of a search, on a device that cannot be read."""

    def run(depth, quant, joint=False):
        runner = make(
            hooks=[dict(type='KillHook', at=2)],
            search=dict(
                budgets=BUDGETS, penalties=PENALTIES, joint=joint, warmup=0.0, measure=0
            ),
            **{
                'model.base_type': 'DeepNet',
                'model.depth': depth,
                **quant,
            },
        )
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        hook, model, launches = hook_of(runner), runner.model, Launches()
        assert len(hook.search.space.groups) == depth
        model.to('meta').train()
        hook.search.optimizer = build_optimizer(
            hook.settings.optimizer, hook.search.space.logits, None
        )
        step = (
            hook.search.optimizer.optimizer.step
        )  # torch's Adam counts steps on the host
        hook.search.optimizer.optimizer.step = launches.without(step)
        hook.search._reach = Reach(hook.search.space, print)
        if joint:
            hook.search._gathered.__init__(hook.search.space.logits)
        batch = dict(
            inputs=torch.zeros(4, 3, 8, 8, device='meta'),
            labels=torch.zeros(4, dtype=torch.int64, device='meta'),
        )
        hook.batches = iter([batch] * 9)
        monkeypatch.setattr(
            Fetch,
            'result',
            lambda self: torch.ones(self._x.shape, dtype=self._x.dtype),
        )
        model._run_forward = launches.without(model._run_forward)
        model.parse_losses = launches.without(model.parse_losses)
        grad = torch.autograd.grad

        def own(outputs, inputs, *args, **kwargs):
            through_model = isinstance(inputs, list) and len(inputs) > 1
            f = launches.without(grad) if through_model else grad
            return f(outputs, inputs, *args, **kwargs)

        monkeypatch.setattr(torch.autograd, 'grad', own)
        monkeypatch.setattr(Softmax, '_relax', None)  # no layer computes its own
        hook._every = 1000
        runner.train_loop._iter = 5
        for _ in range(2):  # in the first one tables are copied to the device
            launches.names.clear()
            with launches:
                hook.before_train_iter(runner, 0)
                with launches.pause():
                    loss, _ = model.parse_losses(model._run_forward(batch, mode='loss'))
                    loss.backward()
                hook.after_train_iter(runner, 0, outputs=dict(loss=loss))
        return launches.names

    return run


@pytest.mark.parametrize(
    ('quant', 'joint'), [*((name, False) for name in QUANTS), ('composite', True)]
)
def test_nothing_is_read_and_as_much_launched_for_few_groups_as_for_many(
    iteration, quant, joint
):
    few, many = (iteration(depth, QUANTS[quant], joint) for depth in (3, 8))
    assert len(many) == len(few) < 400
