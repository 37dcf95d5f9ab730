"""Ranges, signs and BatchNorm statistics from batches."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq.layers import quantized_layers
from mmmpq.models import calibrate, quantize, recalibrate_batchnorm


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
    model = quantize(Net(), candidates=[(2, 2), (8, 8)]).train(training)
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
        assert (layer.w_quantizer.range <= layer.weight.abs().max() + 1e-6).all()
        assert layer._mode is None
    # two bits clip more than eight
    ranges = layers['conv2'].a_quantizer.range.flatten()
    assert ranges[0] < ranges[1]
    top = max(b.abs().max() for batch in batches for b in batch['inputs'])
    assert layers['conv1'].a_quantizer.range.item() <= top


def test_calibration_that_fails_restores_the_norms(batches):
    model = quantize(Net(), candidates=[(2, 2), (8, 8)])
    before = buffers(model)
    with pytest.raises(TypeError):
        calibrate(model, [batches[0], dict(inputs=None)])
    assert model.norm.momentum == 0.1
    assert torch.equal(before[2], buffers(model)[2])
    assert all(layer._mode is None for layer in quantized_layers(model).values())


def test_batchnorm_statistics_become_true_averages(batches):
    model = quantize(Net(), policy='W8A8')
    frozen = [b.clone() for b in model.frozen.buffers()]
    means = []
    handle = model.norm.register_forward_hook(
        lambda m, args, _: means.append(args[0].mean((0, 2, 3)))
    )
    recalibrate_batchnorm(model.eval(), batches)
    handle.remove()
    torch.testing.assert_close(model.norm.running_mean, torch.stack(means).mean(0))
    assert model.norm.num_batches_tracked == 3
    assert model.norm.momentum == 0.1
    assert not model.training
    assert all(
        torch.equal(a, b) for a, b in zip(frozen, model.frozen.buffers(), strict=True)
    )
