"""Traces against exact Hessians, and the perturbation against its formula."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmpq.baselines import hessian, hutchinson
from mmmpq.baselines.hessian import (
    DIFFERENCES,
    EXACT,
    measure,
    quantization_errors,
    traces,
)
from mmmpq.baselines.hutchinson import (
    NotTwiceDifferentiable,
    relative_error,
    trace_sample,
)
from mmmpq.baselines.measurements import Measurements
from mmmpq.layers import float_mode
from mmmpq.models import calibrate, quantize
from mmmpq.search import SearchSpace


class Net(BaseModel):
    """One conv called twice, a BatchNorm, a smooth activation, a linear layer."""

    def __init__(self, loss=F.cross_entropy):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.loss = loss
        self.checkpoint = lambda block, x: block(x)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = self.stem(inputs).tanh()
        x = self.checkpoint(lambda x: self.norm(self.twice(x)).tanh(), x)
        x = self.twice(x)
        x = self.fc(x.mean((2, 3)))
        return dict(loss=self.loss(x, labels)) if mode == 'loss' else x


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, labels):
        ctx.save_for_backward(x, labels)
        return F.cross_entropy(x, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, labels = ctx.saved_tensors
        hot = F.one_hot(labels, x.shape[1])
        return grad * (x.softmax(1) - hot) / len(x), None


@pytest.fixture
def problem():
    def build(loss=F.cross_entropy):
        torch.manual_seed(0)
        net = Net(loss)
        nn.init.uniform_(net.norm.running_var, 0.5, 2)
        quant = dict(candidates=[(2, 4), (4, 2), (8, 32)], fixed={'fc': None})
        model = quantize(net, groups='layer', ends='fixed', **quant)
        batches = [
            dict(inputs=torch.randn(5, 3, 2, 2), labels=torch.randint(0, 3, (5,)))
            for _ in range(2)
        ]
        calibrate(model, batches)
        return model, SearchSpace(model), batches

    return build


def exact_trace(loss_of, at):
    """Tr(H) / n by torch, a mean over functions."""
    hessians = [torch.autograd.functional.hessian(f, at) for f in loss_of]
    return np.mean([h.reshape(at.numel(), -1).trace() for h in hessians]) / at.numel()


def exact_traces(model, name, batches):
    """Of a layer's weight, and of its inputs in all its calls."""
    layer = model.get_submodule(name)
    inputs = []

    def with_weight(batch):
        def loss_of(weight):
            changed = {f'{name}.weight': weight}
            out = torch.func.functional_call(model, changed, (), {**batch, **loss})
            return out['loss']

        return loss_of

    def with_shift(batch):
        def loss_of(shift):
            rest = iter(shift)
            hook = layer.register_forward_pre_hook(lambda _, x: (x[0] + next(rest),))
            out = model(**batch, **loss)
            hook.remove()
            return out['loss']

        return loss_of

    loss = dict(mode='loss')
    hook = layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    model(**batches[0], **loss)
    hook.remove()
    return (
        exact_trace(map(with_weight, batches), layer.weight.detach()),
        exact_trace(map(with_shift, batches), torch.zeros_like(torch.stack(inputs))),
    )


def test_the_trace_of_a_quadratic():
    a = torch.randn(6, 6)
    a = a @ a.t()
    diagonal = torch.diag(torch.arange(1.0, 5))

    def forward(shifts):
        x, y = (torch.full((n,), n / 2).requires_grad_() for n in (6, 4))
        sx, sy = x, y
        if shifts is not None:
            sx = x if shifts[0] is None else x + shifts[0][0]
            sy = y if shifts[1] is None else y + shifts[1][0]
        return sx @ a @ sx / 2 + sy @ diagonal @ sy / 2 + sx.sum(), [[x], [y]]

    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([trace_sample(forward, generator) for _ in range(400)])
    assert samples.mean(0)[0] == pytest.approx(float(a.trace()) / 6, rel=0.1)
    # A diagonal matrix has vᵀDv = Tr D for every v: no noise at all
    assert torch.allclose(samples[:, 1], torch.tensor(2.5).double(), rtol=1e-5)
    for _ in range(3):
        seed = int(torch.randint(0, 1000, ()))
        three = [
            trace_sample(forward, torch.Generator().manual_seed(seed), *how)
            for how in [(), (None, 1e-2), ([[0], [1]], 1e-2)]
        ]
        assert torch.allclose(*three[:2], rtol=1e-2)
        assert torch.allclose(*three[1:], rtol=1e-2)  # nothing off the diagonal here


def test_a_loss_without_curvature_has_no_trace():
    def forward(shifts):
        x = torch.ones(3).requires_grad_()
        return x.sum(), [[x]]

    assert trace_sample(forward, torch.Generator()).tolist() == [0]


def test_traces_of_a_net_against_its_exact_hessian(problem):
    model, space, batches = problem()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cache = Measurements()
    found = traces(model, space, batches, vectors=600, tolerance=0.0, cache=cache)
    assert found.how == EXACT and found.vectors == 600
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(m.training for m in model.modules())
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks

    names = ['twice', 'fc']
    assert list(found.weights) == list(found.inputs) == names
    with float_mode(model):
        model.eval()
        exact = np.transpose([exact_traces(model, name, batches) for name in names])
    means = np.array([[d[n] for n in names] for d in (found.weights, found.inputs)])
    errors = np.std(cache['samples'], axis=0).reshape(2, 2) / 600**0.5
    assert np.all(np.abs(means - exact) < 4 * errors)
    assert np.all(errors < [[0.7], [0.1]] * exact)  # and these are small


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_changes_nothing(problem, reentrant):
    expected = traces(*problem(), vectors=4, tolerance=0.0)
    model, space, batches = problem()
    model.checkpoint = partial(checkpoint, use_reentrant=reentrant)
    found = traces(model, space, batches, vectors=4, tolerance=0.0)
    assert found.weights == pytest.approx(expected.weights, rel=1e-4)
    assert found.inputs == pytest.approx(expected.inputs, rel=1e-4)


def test_finite_differences_where_there_is_no_second_derivative(problem, monkeypatch):
    # The net is smooth; with one step for all blocks their noise is the same.
    monkeypatch.setattr(hessian, 'EPSILON', 1e-3)
    monkeypatch.setattr(hutchinson, '_root_mean_square', lambda block: 1.0)
    expected = traces(*problem(), vectors=8, tolerance=0.0)
    found = traces(*problem(OnceOnly.apply), vectors=8, tolerance=0.0)
    assert found.how == DIFFERENCES
    for name in found.weights:
        assert found.weights[name] == pytest.approx(expected.weights[name], rel=0.02)
        assert found.inputs[name] == pytest.approx(expected.inputs[name], rel=0.02)


@pytest.mark.parametrize('text', ['differentiate twice', 'a bug'])
def test_what_autograd_says_of_a_second_derivative(text):
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError(text)

    def forward(shifts):
        x = torch.ones(3).requires_grad_()
        loss = (x**3).sum()
        x.register_hook(Refuses.apply)  # in the first gradient, not in the loss
        return loss, [[x]]

    kind = NotTwiceDifferentiable if text != 'a bug' else RuntimeError
    with pytest.raises(RuntimeError, match=text) as found:
        trace_sample(forward, torch.Generator())
    assert type(found.value) is kind


def test_other_errors_are_not_taken_for_a_missing_derivative(problem):
    def broken(x, labels):
        raise RuntimeError('a bug')

    model, space, batches = problem()
    model.loss = broken
    with pytest.raises(RuntimeError, match='a bug'):
        traces(model, space, batches, vectors=1)


def test_it_stops_at_the_tolerance_and_goes_on_from_a_cache(problem, tmp_path):
    model, space, batches = problem()
    path = tmp_path / 'hessian.json'
    whole = traces(model, space, batches, vectors=12, tolerance=0.0)
    part = Measurements(path)
    traces(model, space, batches, vectors=5, tolerance=0.0, cache=part)
    seen = []
    again = traces(
        *(model, space, batches),
        vectors=12,
        tolerance=0.0,
        cache=Measurements(path),
        step=lambda done, error: seen.append(done),
    )
    assert again == whole
    assert seen == list(range(5, 13))
    early = traces(model, space, batches, vectors=500, tolerance=0.5)
    assert 8 <= early.vectors < 500 and early.error <= 0.5


def test_relative_error():
    assert relative_error([[1.0, 2.0]]) == float('inf')
    # spread 1 / sqrt(4) over means 10 and 2 and 5: the median is that of 5
    rows = np.array([[10.0, 2, 5]] * 4)
    rows += np.array([[1], [1], [-1], [-1]]) * 3**0.5 / 2
    assert relative_error(rows) == pytest.approx(0.5 / 5)


def test_perturbation_is_trace_times_squared_error(problem):
    model, space, batches = problem()
    errors = quantization_errors(model, space, batches)
    fc = model.fc
    for j, bits in enumerate([2, 4, 8]):
        difference = fc.w_quantizer(fc.weight, bits) - fc.weight
        assert errors['fc'][0][j] == pytest.approx(difference.square().sum().item())
    assert errors['twice'][1][1] > errors['twice'][1][0] > errors['twice'][1][2] == 0

    found = traces(model, space, batches, vectors=8)
    harms = measure(model, space, batches, vectors=8)
    for group, harm in zip(space.groups, harms, strict=True):
        (name,) = group.layers
        wanted = max(0, found.weights[name]) * errors[name][0]
        wanted += max(0, found.inputs[name]) * errors[name][1]
        np.testing.assert_allclose(harm, wanted)
        assert harm.any()


def test_the_input_error_is_that_of_what_the_float_layers_see(problem):
    model, space, batches = problem()
    seen = []
    hook = model.fc.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with float_mode(model), torch.no_grad():
        model.eval()
        for batch in batches:
            model(**batch)
    hook.remove()
    found = quantization_errors(model, space, batches)['fc'][1]
    for j, bits in enumerate([4, 2]):
        errors = [(model.fc.a_quantizer(x, bits) - x).square().sum() for x in seen]
        assert found[j] == pytest.approx(sum(errors).item() / 2, rel=1e-5)


def test_no_batches(problem):
    model, space, _ = problem()
    with pytest.raises(ValueError, match='batches: found none'):
        traces(model, space, [])
    with pytest.raises(ValueError, match='not finite'):
        model.loss = lambda x, labels: x.sum() ** 2 * float('nan')
        traces(model, space, problem()[2])
