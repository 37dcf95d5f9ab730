"""Before fine-tuning: ranges where there are none, BatchNorm as a true average."""

from pathlib import Path

import pytest
import torch

from mmmpq.hooks.held_out import train_batches
from mmmpq.layers import quantized_layers
from mmmpq.models import calibrate

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
        'mmmpq.hooks.calibration_hook.calibrate', lambda *a: seen.append(a)
    )
    monkeypatch.setattr(
        'mmmpq.hooks.calibration_hook.recalibrate_batchnorm', lambda *a: seen.append(a)
    )
    make(
        hooks=[CALIBRATION],
        work_dir=folder,
        resume=True,
        **{**FIXED, 'train_cfg.max_epochs': 2},
    ).train()
    assert not seen


def test_at_least_one_batch(make):
    with pytest.raises(ValueError, match=r'CalibrationHook\.batches: found 0'):
        make(hooks=[dict(CALIBRATION, batches=0)])
