"""What fails at the end of a search does not lose its result."""

import threading

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from mmmpq.engine import results
from mmmpq.models import quantize
from mmmpq.policy import Policy
from tests.test_engine.conftest import TinyNet

SHORT = {'train_cfg.max_epochs': 1}


@MODELS.register_module(name='HoardingNet', force=True)
class HoardingNet(TinyNet):
    """Keeps what has no copy, as the code of some heads does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lock, self.seen, self.convs[1].seen = threading.Lock(), {}, []

    def forward(self, inputs, labels=None, mode='tensor'):
        handles = [
            conv.register_forward_hook(lambda m, i, out: setattr(m, 'feature', out))
            for conv in self.convs
        ]
        found = super().forward(inputs, labels, mode)
        for handle in handles:
            handle.remove()
        self.feature = self.convs[0].feature
        self.seen['last'] = [self.feature]
        return found


def written(runner, base='TinyNet'):
    """The policy and the weights of a search: they make a net."""
    policy = Policy.load(f'{runner.work_dir}/policy.json')
    found = torch.load(f'{runner.work_dir}/searched.pth')
    net = quantize(MODELS.build(dict(type=base)), policy=policy)
    net.load_state_dict(found['state_dict'])
    assert found['meta']['policy'] == {n: list(p) for n, p in policy.layers.items()}
    return policy


@pytest.mark.parametrize('measure', [0, 1])
def test_a_model_that_keeps_feature_maps(make, measure):
    changes = {'model.base_type': 'HoardingNet', **SHORT}
    runner = make(search=dict(measure=measure), **changes)
    runner.train()
    written(runner, 'HoardingNet')


def test_without_a_report(make, monkeypatch):
    def fail(folder):
        raise OSError('no space left')

    monkeypatch.setattr(results, 'write_report', fail)
    runner = make(search=dict(measure=0), **SHORT)
    runner.train()
    written(runner)


def test_measuring_fails(make, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(results, 'mean_loss', fail)
    runner = make(search=dict(measure=1), **SHORT)
    with pytest.raises(RuntimeError, match='out of memory'):
        runner.train()
    written(runner)


def test_a_net_that_has_no_copy(make, monkeypatch):
    def fail(model):
        raise TypeError('no copy')

    monkeypatch.setattr(results, 'copy_of', fail)
    runner = make(search=dict(measure=0), **SHORT)
    with pytest.raises(RuntimeError, match=r'no copy.*policy\.json.*supernet\.pth'):
        runner.train()
    policy = Policy.load(f'{runner.work_dir}/policy.json')
    state = torch.load(f'{runner.work_dir}/supernet.pth')['state_dict']
    net = quantize(MODELS.build(dict(type='TinyNet')), policy=policy)
    found = net.load_state_dict(state, strict=False)
    assert not [k for k in found.missing_keys if k.endswith(('weight', 'bias'))]


def test_a_cost_on_the_limit_is_inside(make, hook_of):
    """But for the rounding of a sum."""
    runner = make(search=dict(measure=0), **SHORT)
    runner.train()
    search = hook_of(runner).search
    policy = search.policy()
    table = search.tables[0]
    table.limit = table.of(policy) * (1 - 1e-12)
    results.finish(runner, search, policy)
    table.limit = table.of(policy) * (1 - 1e-6)
    with pytest.raises(RuntimeError, match='over the budget'):
        results.finish(runner, search, policy)


@pytest.mark.parametrize('hook', ['SearchHook', 'SandwichHook'])
def test_several_optimizers_are_refused_before_training(make, hook):
    class Two:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
            pass

        def __call__(self, model):
            parts = dict(convs=model.convs, fc=model.fc)
            return OptimWrapperDict(
                **{
                    key: OptimWrapper(torch.optim.SGD(part.parameters(), 0.1))
                    for key, part in parts.items()
                }
            )

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='Two', module=Two, force=True)
    search = {} if hook == 'SearchHook' else None
    hooks = [] if search is not None else [dict(type='mmmpq.SandwichHook')]
    runner = make(search=search, hooks=hooks, **{'optim_wrapper.constructor': 'Two'})
    message = f'optim_wrapper: found OptimWrapperDict; {hook} accepts one'
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0
