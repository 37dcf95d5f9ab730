"""Before fine-tuning: ranges where there are none, BatchNorm as a true average."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS

from mmmpq.engine.batches import train_batches
from mmmpq.layers import quantized_layers
from mmmpq.models import calibrate, calibrate_subnet, quantize
from mmmpq.policy import Policy

CALIBRATION = dict(type='mmmpq.CalibrationHook', batches=5)
FIXED = {'model.quant': dict(_delete_=True, policy='W4A4'), 'train_cfg.max_epochs': 1}


@pytest.fixture
def calibrated(make):
    """The model as it is when the first iteration begins."""

    def build(**changes):
        runner = make(
            **{'hooks': [CALIBRATION, dict(type='KillHook', at=0)], **FIXED, **changes}
        )
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        return runner

    return build


def test_batchnorm_becomes_the_average_over_the_batches(calibrated):
    runner = calibrated()
    model = runner.model
    assert all(m.w_quantizer.calibrated for m in quantized_layers(model).values())
    means, variances = [], []

    def look(module, inputs, output):
        x = inputs[0].transpose(0, 1).flatten(1)
        means.append(x.mean(1))
        variances.append(x.var(1))

    handle = model.norms[1].register_forward_hook(look)
    found = model.norms[1].running_mean.clone(), model.norms[1].running_var.clone()
    model.train()
    with torch.no_grad():
        for batch in train_batches(runner, 5):
            model(**batch, mode='loss')
    handle.remove()
    assert torch.allclose(found[0], torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(found[1], torch.stack(variances).mean(0), rtol=1e-4)
    assert model.norms[1].momentum == 0.1


def test_batchnorm_is_left_alone_on_request(calibrated):
    hooks = [dict(CALIBRATION, batchnorm=False), dict(type='KillHook', at=0)]
    model = calibrated(hooks=hooks).model
    assert not model.norms[1].running_mean.any()


def test_ranges_of_a_searched_net_are_kept(make, calibrated):
    search = make(search={}, **{'train_cfg.max_epochs': 1})
    search.train()
    folder = Path(search.work_dir)
    saved = torch.load(folder / 'searched.pth', weights_only=True)['state_dict']
    runner = calibrated(
        load_from=str(folder / 'searched.pth'),
        **{**FIXED, 'model.quant.policy': str(folder / 'policy.json')},
    )
    ranges = {k: v for k, v in runner.model.state_dict().items() if 'quantizer' in k}
    assert len(ranges) > 10
    assert all(torch.equal(v, saved[k]) for k, v in ranges.items())
    norm = 'norms.2.running_mean'
    assert not torch.equal(runner.model.state_dict()[norm], saved[norm])


def test_ranges_are_fitted_where_there_are_none(calibrated):
    runner = calibrated()
    found = {k: v.clone() for k, v in runner.model.state_dict().items()}
    calibrate(runner.model, train_batches(runner, 5))
    for name, value in runner.model.state_dict().items():
        if 'quantizer' in name:
            assert torch.allclose(value.float(), found[name].float(), rtol=0.3), name


def test_a_resumed_run_is_left_alone(make, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    make(hooks=[CALIBRATION], work_dir=folder, **FIXED).train()
    seen = []
    monkeypatch.setattr(
        'mmmpq.engine.hooks.calibration.calibrate', lambda *a: seen.append(a)
    )
    monkeypatch.setattr(
        'mmmpq.engine.hooks.calibration.calibrate_subnet', lambda *a: seen.append(a)
    )
    make(
        hooks=[CALIBRATION],
        work_dir=folder,
        resume=True,
        **{**FIXED, 'train_cfg.max_epochs': 2},
    ).train()
    assert not seen


def test_a_checkpoint_names_its_policy(make):
    runner = make(hooks=[CALIBRATION], **FIXED)
    runner.train()
    layers = quantized_layers(runner.model)
    path = next(Path(runner.work_dir).glob('*.pth'))
    found = torch.load(path, weights_only=True)['meta']['policy']
    assert found == {n: list(m.precision) for n, m in layers.items()}
    assert [4, 4] in found.values()


def test_inputs_that_are_zero_for_good_have_a_range_in_the_checkpoint(make):
    """As the values of a DETR's first decoder layer; others are left to what comes."""
    runner = make(hooks=[CALIBRATION], **FIXED)
    layers = quantized_layers(runner.model)
    zero, never = list(layers)[1:3]
    layers[zero].register_forward_pre_hook(lambda _, x: (torch.zeros_like(x[0]),))
    layers[never].a_quantizer.calibrate = lambda x: None
    runner.train()
    state = torch.load(next(Path(runner.work_dir).glob('*.pth')), weights_only=True)
    state = state['state_dict']
    assert state[f'{zero}.a_quantizer.signed'] >= 0
    assert state[f'{never}.a_quantizer.signed'] == -1
    x = torch.zeros(1, *layers[zero].weight.shape[1:2], 4, 4)
    assert not layers[zero].a_quantizer(x, 4).any()


def test_a_supernet_names_none(make):
    runner = make(hooks=[CALIBRATION])
    checkpoint = dict(meta={})
    runner.call_hook('before_save_checkpoint', checkpoint=checkpoint)
    named = set(checkpoint['meta']['policy'])
    assert named < set(quantized_layers(runner.model))  # those that are fixed


def test_at_least_one_batch(make):
    with pytest.raises(ValueError, match=r'CalibrationHook\.batches: found 0'):
        make(hooks=[dict(CALIBRATION, batches=0)])


# --- nets that compute on the ranges of each batch ------------------------------------

BATCHQUANT = {
    **FIXED,
    'model.quant': dict(
        _delete_=True,
        policy='W4A4',
        w_quantizer=dict(type='LSQQuantizer'),
        a_quantizer=dict(type='BatchQuantizer'),
    ),
}
LOOPS = {
    'epochs': BATCHQUANT,
    'iterations': {
        **{k: v for k, v in BATCHQUANT.items() if k != 'train_cfg.max_epochs'},
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=7),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=7),
    },
}
TEST = dict(
    test_dataloader=dict(
        batch_size=8,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='TinyPictures', n=16, augment=False),
    ),
    test_cfg=dict(),
    test_evaluator=dict(type='SumOfLogits'),
)


@METRICS.register_module(name='SumOfLogits', force=True)
class SumOfLogits(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(x.abs().sum()) for x in data_samples]

    def compute_metrics(self, results):
        return dict(sum=sum(results))


def extremes(model):
    layers = quantized_layers(model).values()
    return [m.a_quantizer.extremes.clone() for m in layers]


@pytest.fixture
def trained(make):
    """A net that computes on the ranges of each batch, after its training."""

    def build(loop='epochs', hooks=(CALIBRATION,), **changes):
        runner = make(hooks=hooks, **{**LOOPS[loop], **changes})
        runner.model.drop.p = 0.0
        runner.train()
        return runner, next(Path(runner.work_dir).glob('*.pth'))

    return build


@pytest.mark.parametrize('loop', LOOPS)
def test_the_last_checkpoint_has_statistics_of_its_weights(trained, make, loop):
    runner, path = trained(loop)
    other = make(load_from=str(path), **LOOPS[loop])
    other.load_or_resume()
    other.model.drop.p = 0.0
    other.model.eval()(torch.randn(2, 3, 8, 8))
    found = extremes(other.model)
    calibrate_subnet(other.model, train_batches(runner, 5))
    for a, b in zip(found, extremes(other.model), strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)


def test_a_validation_is_of_the_weights_as_they_are(trained):
    val = {k.replace('test', 'val'): v for k, v in TEST.items()}
    runner, _ = trained(**val, **{'train_cfg.val_interval': 1})
    assert runner.message_hub.get_scalar('val/sum').current() > 0
    loop = dict(LOOPS['iterations']['train_cfg'], val_interval=3)
    runner, _ = trained('iterations', **val, train_cfg=loop)
    assert (
        len(runner.message_hub.get_scalar('val/sum')._log_history) == 3
    )  # the last one, too


def test_a_test_calibrates_what_was_saved_without_statistics(trained, make):
    _, path = trained(hooks=())
    stored = torch.load(path, weights_only=True)['state_dict']
    assert int(stored['convs.1.a_quantizer.signed']) == -1
    changes = {**BATCHQUANT, **TEST, 'load_from': str(path)}
    with pytest.raises(ValueError, match='CalibrationHook'):
        make(**changes).test()
    assert make(hooks=[CALIBRATION], **changes).test()['sum'] > 0


def test_checkpoints_hold_the_policy_itself(make, tmp_path, monkeypatch):
    """Whoever trains: the file may be out of sight where the checkpoint is used."""
    monkeypatch.chdir(tmp_path)
    net = MODELS.build(dict(type='TinyNet'))
    layers = quantized_layers(quantize(net, policy='W4A4'))
    Policy({n: m.precision for n, m in layers.items()}).save('policy.json')
    quant = dict(_delete_=True, policy='policy.json')
    runner = make(
        hooks=[dict(type='mmmpq.CalibrationHook', batches=1)],
        train_cfg=dict(max_epochs=1),
        **{'model.quant': quant},
    )
    runner.train()
    found = torch.load(f'{runner.work_dir}/epoch_1.pth')
    config = Config.fromstring(found['meta']['cfg'], '.py')
    assert config.model.quant.policy.layers['convs.1'] == [4, 4]


def test_batchnorm_is_that_of_the_last_net(make):
    """With ``final``, a true average over the weights that training ends with."""
    hook = dict(CALIBRATION, final=4)
    runner = make(hooks=[hook], **FIXED)
    runner.train()
    model = runner.model
    found = model.norms[2].running_mean.clone()
    calibrate_subnet(model, train_batches(runner, 5))
    torch.testing.assert_close(model.norms[2].running_mean, found, rtol=0.2, atol=0.05)
    saved = torch.load(Path(runner.work_dir) / 'epoch_1.pth', weights_only=False)
    assert torch.equal(saved['state_dict']['norms.2.running_mean'], found)
    without = make(hooks=[CALIBRATION], **FIXED)
    without.train()
    for name, value in model.state_dict().items():
        same = torch.equal(value, without.model.state_dict()[name])
        assert same == ('running' not in name and 'tracked' not in name), name
