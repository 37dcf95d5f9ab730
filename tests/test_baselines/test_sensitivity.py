"""Measured harm of one group alone, its cache, and the choice that minimises it."""

import json
import math

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.nn import functional as F

from mmmpq.baselines.measurements import Measurements, fingerprint
from mmmpq.baselines.sensitivity import measure, output_distance
from mmmpq.layers import Mode, float_mode
from mmmpq.models import calibrate, quantize
from mmmpq.models.task_loss import mean_loss
from mmmpq.search import SearchSpace
from mmmpq.search.at_choice import at_choice

CANDIDATES = [(2, 2), (4, 4), (8, 8), (32, 32)]


class Net(BaseModel):
    def __init__(self, maps=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 4)
        self.maps = maps
        self.calls = 0

    def forward(self, inputs, labels=None, mode='tensor'):
        self.calls += 1
        maps = self.body(self.norm(self.stem(inputs)).relu())
        x = self.fc(self.drop(maps.relu().mean((2, 3))))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(x, labels))
        return (x, [maps]) if self.maps else x


@pytest.fixture
def problem():
    def build(seed=0, candidates=CANDIDATES, **kwargs):
        torch.manual_seed(seed)
        fixed = {'stem': (8, 8), 'fc': None}
        model = quantize(
            Net(**kwargs), candidates=candidates, fixed=fixed, groups='layer'
        )
        batches = [
            dict(inputs=torch.randn(6, 3, 7, 7), labels=torch.randint(0, 4, (6,)))
            for _ in range(2)
        ]
        calibrate(model, batches)
        return model, SearchSpace(model), batches

    return build


def test_loss_increase_of_one_group(problem):
    model, space, batches = problem()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    values = measure(model, space, batches)
    assert [v.shape for v in values] == [(4,), (4,)]
    for j, (w, a) in enumerate(CANDIDATES[:3]):

        def quantized(w=w, a=a):
            layer = model.fc
            return lambda m, x: F.linear(
                layer.a_quantizer(x[0], a), layer.w_quantizer(layer.weight, w), m.bias
            )

        with float_mode(model):
            base = mean_loss(model, batches)
            replace = quantized()
            hook = model.fc.register_forward_hook(lambda m, x, _, r=replace: r(m, x))
            moved = mean_loss(model, batches)
            hook.remove()
        assert values[1][j] == pytest.approx(moved - base, abs=1e-6)
    assert all(v[3] == 0 for v in values)
    # the loss calls above moved BatchNorm, ``measure`` itself must not
    model.load_state_dict(before)
    measure(model, space, batches)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    layers = model.stem, model.body, model.fc
    assert all(layer.mode is Mode.QUANTIZED for layer in layers)


def test_output_distance_of_logits_is_a_divergence(problem):
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    wanted = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert output_distance([p.log() + 3], [q.log()]) == pytest.approx(wanted)
    values = measure(*problem(), metric='output')
    for v in values:
        assert v[0] > v[1] > v[2] > v[3] == 0


def test_output_distance_of_maps_is_relative():
    a, b = torch.tensor([3.0, 4.0]), torch.ones(2, 2)
    assert output_distance([a, b], [a * 1.1, b + 1]) == pytest.approx(0.01 + 1)
    with pytest.raises(ValueError, match=r'change their shapes.*"loss"'):
        output_distance([b], [b[:1]])


def test_nested_outputs_are_all_compared(problem):
    values = measure(*problem(maps=True), metric='output')
    assert values[0][0] > values[0][1] > values[0][2] > 0


def test_a_killed_run_goes_on(problem, tmp_path):
    model, space, batches = problem()
    path = tmp_path / 'sensitivity.json'
    settings = fingerprint(model, space)
    whole = measure(model, space, batches)

    def kill(done, total):
        assert total == 8
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, space, batches, cache=Measurements(path, settings), step=kill)
    layers = model.stem, model.body, model.fc
    assert all(layer.mode is Mode.QUANTIZED for layer in layers)
    assert len(json.loads(path.read_text())['values']) == 3
    model.calls = 0
    again = measure(model, space, batches, cache=Measurements(path, settings))
    np.testing.assert_array_equal(again, whole)
    assert model.calls == 2 * (1 + 3)  # the float net, and fc at three candidates
    model.calls = 0
    measure(model, space, batches, cache=Measurements(path, settings))
    assert model.calls == 0


def test_a_cache_of_something_else_says_what_differs(problem, tmp_path):
    path = tmp_path / 'sensitivity.json'
    model, space, _ = problem()
    Measurements(path, dict(fingerprint(model, space), metric='loss'))['x'] = 1

    def error(settings):
        with pytest.raises(ValueError, match='measured for something else') as found:
            Measurements(path, settings)
        return str(found.value).split('what differs: ')[1]

    same = dict(fingerprint(model, space), metric='loss')
    assert Measurements(path, same)['x'] == 1
    said = error(dict(same, metric='output'))
    assert said.startswith('metric (there loss, here output). Delete it')
    other = problem(seed=1)
    said = error(dict(fingerprint(*other[:2]), metric='loss'))
    assert said.startswith('weights (') and 'candidates' not in said
    other = problem(candidates=[(2, 2), (8, 8)])
    said = error(dict(fingerprint(*other[:2]), metric='loss'))
    assert 'body: there W2A2 W4A4 W8A8 W32A32, here W2A2 W8A8' in said
    path.write_text('{"format"')
    with pytest.raises(ValueError, match='damaged or cut short'):
        Measurements(path, same)
    path.write_text('[]')
    with pytest.raises(ValueError, match='no mmmpq-measurements file'):
        Measurements(path, same)


def test_fingerprint_ignores_what_calibration_finds(problem):
    model, space, _ = problem()
    before = fingerprint(model, space)
    with torch.no_grad():
        model.fc.w_quantizer.range.mul_(2)
    assert fingerprint(model, space) == before
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert fingerprint(model, space) != before


def test_a_whole_choice_quantizes_fixed_layers_too(problem):
    model, space, batches = problem()
    before = model.body.mixing
    with at_choice(model, space, [2, 2]):
        assert model.stem.mode is Mode.QUANTIZED
        whole = mean_loss(model, batches)
    with at_choice(model, space, [2, None]):
        assert model.stem.mode is model.fc.mode is Mode.FLOAT
        assert mean_loss(model, batches) != whole
    assert [g.relaxation.choice for g in space.groups] == [None, None]
    assert model.body.mixing == before and model.training


def test_bad_input(problem):
    model, space, batches = problem()
    with pytest.raises(ValueError, match="metric: found 'mse'; accepted are loss"):
        measure(model, space, batches, metric='mse')
    with pytest.raises(ValueError, match='batches: found none'):
        measure(model, space, [])
    with torch.no_grad():
        model.fc.w_quantizer.range.fill_(float('nan'))
    with pytest.raises(ValueError, match='loss of fc W2A2 is nan'):
        measure(model, space, batches)
