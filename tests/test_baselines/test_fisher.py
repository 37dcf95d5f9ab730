"""Fisher-weighted errors against differences of the loss, one by one."""

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq.baselines import fisher
from mmmpq.baselines.measurements import Measurements
from mmmpq.models import calibrate, quantize
from mmmpq.search import SearchSpace


class Net(BaseModel):
    """Linear layers and a sum of outputs, whose gradients are known by hand."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3, bias=False)
        self.second = nn.Linear(3, 2, bias=False)

    def forward(self, inputs, mode='tensor'):
        out = self.second(self.first(inputs))
        out = self.second(out.repeat(1, 2)[:, :3])  # called twice
        return dict(loss=out.sum(1).mean()) if mode == 'loss' else out


CANDIDATES = [(2, 4), (4, 2), (8, 32)]


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = quantize(Net(), candidates=CANDIDATES, groups='layer', fixed={'*': None})
    batches = [dict(inputs=torch.randn(5, 4)) for _ in range(2)]
    calibrate(model, batches)
    return model, SearchSpace(model), batches


def by_hand(model, batch):
    """½ B Σ g² e² of every layer and candidate, with gradients by autograd alone."""
    x = batch['inputs']
    w1, w2 = (m.weight.detach().requires_grad_() for m in (model.first, model.second))
    a = x.clone().requires_grad_()
    b = a @ w1.t()
    c = b @ w2.t()
    d = c.repeat(1, 2)[:, :3]
    loss = (d @ w2.t()).sum(1).mean()
    g1, g2, ga, gb, gd = torch.autograd.grad(loss, [w1, w2, a, b, d])
    found = {}
    for name, g_w, inputs in (
        ('first', g1, [(a, ga)]),
        ('second', g2, [(b, gb), (d, gd)]),
    ):
        layer = model.get_submodule(name)
        found[name] = []
        for w_bits, a_bits in CANDIDATES:
            error = (layer.w_quantizer(layer.weight, w_bits) - layer.weight) * g_w
            total = error.square().sum()
            for each, g in inputs:
                error = (layer.a_quantizer(each, a_bits) - each) * g
                total = total + error.square().sum()
            found[name].append(0.5 * len(x) * total.item())
    return found


def test_against_gradients_by_hand(problem):
    model, space, batches = problem
    harms = fisher.measure(model, space, batches)
    each = [by_hand(model, batch) for batch in batches]
    for group, harm in zip(space.groups, harms, strict=True):
        wanted = np.mean([e[group.name] for e in each], axis=0)
        np.testing.assert_allclose(harm, wanted, rtol=1e-4)
    assert (harms[0][2] < harms[0][:2]).all()


def test_it_is_the_mean_rise_of_a_sum_of_squares():
    """Of a linear net under ½ Σ (y - t)² with targets of unit noise the Fisher matrix
    is the Hessian: E[rise] = ½ ‖e x‖², of which Ω takes the diagonal."""
    torch.manual_seed(0)

    class Quadratic(BaseModel):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 1, bias=False)

        def forward(self, inputs, targets=None, mode='tensor'):
            out = self.first(inputs)
            return dict(loss=(out - targets).square().sum(1).mean() / 2)

    model = quantize(
        Quadratic(), candidates=[(2, 32), (3, 32), (8, 32)], fixed={'*': None}
    )
    x = torch.randn(4000, 6)
    y = x @ model.first.weight.t().detach()
    batch = dict(inputs=x, targets=y + torch.randn(4000, 1))
    calibrate(model, [batch])
    space = SearchSpace(model)
    # Gradients of one sample at a time: what a batch's mean leaves of their squares.
    samples = [
        dict(inputs=x[i : i + 1], targets=batch['targets'][i : i + 1])
        for i in range(1500)
    ]
    (harm,) = fisher.measure(model, space, samples)
    layer = model.first
    for j, bits in enumerate((2, 3, 8)):
        e = (layer.w_quantizer(layer.weight, bits) - layer.weight).detach()
        rise = 0.5 * (x @ e.t()).square().mean()
        assert harm[j] == pytest.approx(float(rise), rel=0.15)


def test_measurements_are_kept(problem, tmp_path):
    model, space, batches = problem
    cache = Measurements(tmp_path / 'fisher.json')
    first = fisher.measure(model, space, batches, cache)
    model.first.weight.data.zero_()
    kept = Measurements(tmp_path / 'fisher.json')
    again = fisher.measure(model, space, batches, kept)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_batch_and_no_number(problem):
    model, space, batches = problem
    with pytest.raises(ValueError, match='batches: found none'):
        fisher.measure(model, space, [])
    model.first.weight.data[0, 0] = float('nan')
    with pytest.raises(ValueError, match='fisher: a gradient is not finite'):
        fisher.measure(model, space, batches)
