"""A loss that is no number stops the run, says where, and spoils no checkpoint."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmmpq.engine.hooks.finite import FiniteLossHook, first_non_finite

FINITE = dict(type='mmmpq.FiniteLossHook')
FLOAT = dict(model=dict(_delete_=True, type='TinyNet'))


class Poison(Hook):
    """Makes one weight NaN before iteration ``at``."""

    def __init__(self, at, name='convs.2'):
        self.at, self.name = at, name

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            layer = runner.model.get_submodule(self.name)
            with torch.no_grad():
                layer.weight.view(-1)[0] = float('nan')


def good_checkpoint(runner):
    path = Path((Path(runner.work_dir) / 'last_checkpoint').read_text())
    state = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.isfinite(v).all() for v in state.values())
    return path.name


@pytest.mark.parametrize('at', [12, 19])
def test_stops_and_names_the_layer(make, at):
    """Iterations 10 and 20 begin an epoch: at 19 the checkpoint is written next."""
    runner = make(hooks=[FINITE, Poison(at)], **FLOAT)
    with pytest.raises(FloatingPointError, match=r'nan .*non-finite value is convs\.2'):
        runner.train()
    assert runner.iter == at
    assert good_checkpoint(runner) == 'epoch_1.pth'


@pytest.mark.parametrize('joint', [False, True])
@pytest.mark.parametrize('at', [12, 'last'])
def test_a_search_has_it_built_in(make, at, joint):
    at = (29 if joint else 23) if at == 'last' else at
    runner = make(hooks=[Poison(at)], search=dict(joint=joint))
    with pytest.raises(FloatingPointError, match=r'non-finite value is convs\.2\. '):
        runner.train()
    assert good_checkpoint(runner) == f'epoch_{1 if at == 12 else 2}.pth'
    assert not (Path(runner.work_dir) / 'searched.pth').exists()


def test_a_loss_that_is_bad_for_held_out_pictures_alone(make, hook_of):
    runner = make(search={})

    class Spoil(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                loader = hook_of(runner).batches.loader
                loader.dataset.pipeline.transforms.append(
                    lambda item: dict(item, inputs=item['inputs'] * float('nan'))
                )

    runner.register_hook(Spoil())
    with pytest.raises(FloatingPointError, match=r'non-finite value is convs\.0'):
        runner.train()
    assert good_checkpoint(runner) == 'epoch_1.pth'


def test_no_step_is_taken_with_a_bad_loss(make, hook_of):
    runner = make(hooks=[Poison(12, 'fc')], search=dict(joint=False))
    with pytest.raises(FloatingPointError, match=r'non-finite value is fc\. '):
        runner.train()
    bad = [n for n, p in runner.model.named_parameters() if not p.isfinite().all()]
    assert bad == ['fc.weight']


def test_finite_losses_pass_and_change_nothing(make):
    states = []
    for hooks in ([], [FINITE]):
        runner = make(hooks=hooks, **FLOAT)
        runner.train()
        states.append(runner.model.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_a_loss_is_judged_when_it_is_watched(monkeypatch):
    """It is on its way to the host from then on, whatever becomes of the tensor."""
    stopped = []
    monkeypatch.setattr(
        'mmmpq.engine.hooks.finite.stop_at_non_finite',
        lambda runner, batch, loss: stopped.append(batch),
    )
    hook, loss = FiniteLossHook(), torch.tensor(float('nan'))
    hook.watch(loss, 'bad')
    hook.watch(torch.ones(()), 'good')
    loss.zero_()
    hook.check(None)
    hook.check(None)
    assert stopped == ['bad']


def test_first_non_finite(make):
    model = make(**FLOAT).model
    batch = dict(inputs=torch.randn(2, 3, 8, 8), labels=torch.tensor([0, 1]))
    assert first_non_finite(model, batch).startswith('none of the layers')
    with torch.no_grad():
        model.fc.bias[0] = float('inf')
        assert first_non_finite(model, batch) == 'fc'
        model.norms[1].weight[0] = float('inf')
    assert first_non_finite(model, batch) == 'norms.1'
    assert 'the forward pass fails' in first_non_finite(
        model, dict(inputs=torch.randn(2, 5, 8, 8), labels=batch['labels'])
    )
