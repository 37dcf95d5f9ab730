"""Ranges, signs and BatchNorm statistics from batches."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq.layers import Mode, quantized_layers
from mmmpq.models import calibrate, calibrate_subnet, quantize
from mmmpq.quantizers import BatchQuantizer, Quantizer
from mmmpq.registry import QUANTIZERS
from mmmpq.subnets.space import SubnetSpace

BATCHQUANT = dict(
    w_quantizer=dict(type='LSQQuantizer'), a_quantizer=dict(type='BatchQuantizer')
)


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4, momentum=0.1)
        self.frozen = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()  # as norm_eval does
        return self

    def forward(self, inputs, mode='tensor'):
        x = self.frozen(self.norm(self.conv1(torch.stack(inputs))))
        return dict(loss=self.fc(self.conv2(x.relu()).mean((2, 3))).square().mean())


@pytest.fixture
def batches():
    return [dict(inputs=list(torch.randn(8, 3, 5, 5) * k)) for k in (1, 2, 3)]


def buffers(model):
    norms = model.norm, model.frozen
    return [b.clone() for n in norms for b in n.buffers()]


@pytest.mark.parametrize('training', [True, False])
def test_calibration_fits_quantizers_and_nothing_else(batches, training):
    model = quantize(Net(), candidates=[(2, 2), (8, 8)], ends='fixed').train(training)
    before = buffers(model)
    weights = {n: layer.weight.clone() for n, layer in quantized_layers(model).items()}
    calibrate(model, batches)
    assert model.training == training
    assert model.norm.momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, buffers(model), strict=True))
    layers = quantized_layers(model)
    assert {n: int(m.a_quantizer.signed) for n, m in layers.items()} == {
        'conv1': 1,
        'conv2': 0,
        'fc': 1,
    }
    for name, layer in layers.items():
        assert torch.equal(layer.weight, weights[name])
        assert (layer.w_quantizer.clip() <= layer.weight.abs().max() + 1e-6).all()
        assert layer.mode is Mode.QUANTIZED
    # two bits clip more than eight
    ranges = layers['conv2'].a_quantizer.clip().flatten()
    assert ranges[0] < ranges[1]
    top = max(b.abs().max() for batch in batches for b in batch['inputs'])
    assert layers['conv1'].a_quantizer.clip().item() <= top


def test_calibration_that_fails_restores_the_norms(batches):
    model = quantize(Net(), candidates=[(2, 2), (8, 8)], ends='fixed')
    before = buffers(model)
    with pytest.raises(TypeError):
        calibrate(model, [batches[0], dict(inputs=None)])
    assert model.norm.momentum == 0.1
    assert torch.equal(before[2], buffers(model)[2])
    layers = quantized_layers(model).values()
    assert all(layer.mode is Mode.QUANTIZED for layer in layers)


def test_batchnorm_statistics_become_true_averages(batches):
    model = quantize(Net(), policy='W8A8')
    frozen = [b.clone() for b in model.frozen.buffers()]
    means = []
    handle = model.norm.register_forward_hook(
        lambda m, args, _: means.append(args[0].mean((0, 2, 3)))
    )
    calibrate_subnet(model.eval(), batches)
    handle.remove()
    torch.testing.assert_close(model.norm.running_mean, torch.stack(means).mean(0))
    assert model.norm.num_batches_tracked == 3
    assert model.norm.momentum == 0.1
    assert not model.training
    assert all(
        torch.equal(a, b) for a, b in zip(frozen, model.frozen.buffers(), strict=True)
    )


def ranges(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, BatchQuantizer)}


def statistics(model):
    """Those that calibration may change."""
    found = [(m.extremes, m.signed) for m in ranges(model).values()]
    norms = (model.norm.running_mean, model.norm.running_var)
    return [t.clone() for pair in [*found, norms] for t in pair]


def test_ranges_and_batchnorm_are_averages_of_the_same_passes(batches):
    model = quantize(Net(), policy='W4A4', **BATCHQUANT).eval()
    with pytest.raises(ValueError, match='no statistics'):
        model(batches[0]['inputs'])
    seen = {}

    def look(name):
        def hook(module, args):
            x = args[0].detach()
            dims = [d for d in range(x.dim()) if d != 1]
            means = x.amin(dims).mean(), x.amax(dims).mean()
            seen.setdefault(name, []).append(torch.stack(means))

        return hook

    def look_at_norm(module, args):
        x = args[0].detach().transpose(0, 1).flatten(1)
        seen.setdefault('norm', []).append(torch.stack([x.mean(1), x.var(1)]))

    handles = [m.register_forward_pre_hook(look(n)) for n, m in ranges(model).items()]
    handles.append(model.norm.register_forward_pre_hook(look_at_norm))
    calibrate_subnet(model, batches)
    for handle in handles:
        handle.remove()
    assert not model.training
    for name, module in ranges(model).items():
        assert len(seen[name]) == 3
        assert module.calibrated and module.gathered is None
        mean = torch.stack(seen[name]).mean(0)
        torch.testing.assert_close(module.extremes, mean)
    mean, variance = torch.stack(seen['norm']).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, variance)
    model(batches[0]['inputs'])
    first = statistics(model)
    calibrate_subnet(model, batches)  # nothing of the time before is left
    for a, b in zip(first, statistics(model), strict=True):
        torch.testing.assert_close(a, b)


def test_a_shared_layer_averages_over_its_calls(batches):
    class Twice(Net):
        def forward(self, inputs, mode='tensor'):
            x = self.norm(self.conv1(torch.stack(inputs)))
            return dict(loss=self.conv2(x).mean() + self.conv2(10 * x).mean())

    model = quantize(Twice(), policy='W4A4', groups='layer', **BATCHQUANT)
    calibrate_subnet(model, batches)
    extremes = ranges(model)['conv2.a_quantizer'].extremes
    seen = []
    with torch.no_grad():
        for batch in batches:
            x = model.train().norm(model.conv1(torch.stack(batch['inputs'])))
            bounds = [x.amin((0, 2, 3)).mean(), x.amax((0, 2, 3)).mean()]
            seen += [torch.stack(bounds), 10 * torch.stack(bounds)]
    torch.testing.assert_close(extremes, torch.stack(seen).mean(0))
    assert not ranges(model)['fc.a_quantizer'].calibrated  # no call reached it


def test_batchnorm_is_left_alone_on_request(batches):
    model = quantize(Net(), policy='W4A4', **BATCHQUANT)
    before = buffers(model)
    calibrate_subnet(model, batches, batchnorm=False)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers(model), strict=True))
    assert model.norm.momentum == 0.1
    assert all(m.calibrated for m in ranges(model).values())


def test_statistics_that_fail_leave_nothing_behind(batches):
    model = quantize(Net(), policy='W4A4', **BATCHQUANT)
    with pytest.raises(TypeError):
        calibrate_subnet(model, [batches[0], dict(inputs=None)])
    assert model.norm.momentum == 0.1
    assert all(m.gathered is None for m in ranges(model).values())
    assert not any(m.calibrated for m in ranges(model).values())


def test_processes_are_weighed_by_their_calls(batches, monkeypatch):
    """Two batches in one and one in the other are as three in one."""
    models = [quantize(Net(), policy='W4A4', **BATCHQUANT) for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    together, one, other = models
    calibrate_subnet(together, batches)
    sent = []
    path = 'mmmpq.models.calibration.dist'
    monkeypatch.setattr(f'{path}.get_world_size', lambda: 2)
    monkeypatch.setattr(f'{path}.all_reduce', lambda flat: sent.append(flat.clone()))
    calibrate_subnet(other, batches[:1])
    monkeypatch.setattr(f'{path}.all_reduce', lambda flat: flat.add_(sent[0]))
    calibrate_subnet(one, batches[1:])
    for a, b in zip(statistics(one), statistics(together), strict=True):
        torch.testing.assert_close(a, b)


class Percentile(Quantizer):
    """Signed activations up to the mean 90th percentile of |x|, of one subnet."""

    per_subnet = True

    def __init__(self, bits, target, channels=1):
        super().__init__(bits, target)
        self.register_buffer('statistics', torch.ones(1))

    def calibrate(self, x):
        pass

    def set_statistics(self, mean):
        self.statistics.copy_(mean)
        self.set_sign(True)

    def scales(self, x, bits):
        if self.training:
            now = x.detach().abs().flatten().quantile(0.9)[None]
            if self.gathered is not None:
                self.gathered.append(now)
        else:
            now = self.statistics
        return torch.stack([now[0] / self.top(b) for b in bits])


def test_statistics_of_a_quantizer_of_ones_own():
    """It is measured, forgotten and saved as BatchQuantizer is, by what it says."""
    QUANTIZERS.register_module(name='Percentile', module=Percentile, force=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = quantize(
        net,
        candidates=['W2A2', 'W4A4'],
        a_quantizer=dict(type='Percentile'),
        mixing='sampled',
        fixed={'*': None},
        groups='layer',
    )
    space = SubnetSpace(net)
    space.activate(space.largest())
    batches = [torch.randn(2, 3, 6, 6) for _ in range(3)]
    calibrate_subnet(net, batches)
    wanted = torch.stack([b.abs().flatten().quantile(0.9) for b in batches]).mean()
    quantizer = net[0].a_quantizer
    torch.testing.assert_close(quantizer.statistics[0], wanted)
    assert quantizer.calibrated and quantizer.gathered is None
    assert int(net.state_dict()['0.a_quantizer.signed']) == -1
    space.activate(space.smallest())
    assert not quantizer.calibrated
