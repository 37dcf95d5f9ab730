"""All relaxations at once against each of them alone; what is handed and when."""

import copy

import pytest
import torch
from torch import nn

from mmmpq.layers import (
    BatchedRelaxation,
    GumbelSoftmax,
    MixedConv2d,
    Softmax,
    UniformSampling,
)
from mmmpq.layers.shares import shares
from mmmpq.policy import parse_candidates

PAIRS = parse_candidates([(8, 8), (2, 2), (2, 3), (4, 4), (4, 2)])
SKIP = parse_candidates([(0, 0), (2, 2), (4, 4)])
GRID = parse_candidates([(w, a) for a in (2, 4) for w in (8, 3, 2)])
GROUPS = {
    'equal': [lambda: Softmax(PAIRS), lambda: Softmax(PAIRS)],
    'one': [lambda: Softmax(GRID, factorised=True)],
    'mixed': [
        lambda: Softmax(PAIRS, temperature=0.5),
        lambda: Softmax(GRID, factorised=True),
        lambda: Softmax(SKIP),
        lambda: GumbelSoftmax(PAIRS[:3], temperature=2.0, anneal=0.1),
        lambda: GumbelSoftmax(GRID, factorised=True).eval(),
        lambda: GumbelSoftmax(SKIP, temperature=3.0),
    ],
    'gumbel': [lambda: GumbelSoftmax(PAIRS, temperature=5.0, anneal=0.025)] * 3,
}
MIXINGS = ('composite', 'outputs', 'sampled')


@pytest.fixture(params=GROUPS)
def relaxations(request):
    torch.manual_seed(0)
    made = [make() for make in GROUPS[request.param]]
    for r in made:
        r.epoch = 4.0
        with torch.no_grad():
            r.logits.normal_(std=2.0)
        r.logits.requires_grad_(True)
        r.choice = len(r.candidates) - 1
    return made


def logits(relaxations):
    return [r.logits for r in relaxations]


def test_probabilities_and_their_gradient(relaxations):
    batch = BatchedRelaxation(relaxations, {'composite'})
    found = batch.each(batch.probs(batch.theta()))
    wanted = [r.probs() for r in relaxations]
    torch.testing.assert_close(list(found), wanted)
    torch.testing.assert_close(found.flat, torch.cat(wanted))
    for row, p in zip(found.padded, wanted, strict=True):
        assert torch.equal(row[len(p) :], torch.zeros(len(row) - len(p)))
    weights = torch.randn(len(found.flat))
    found = torch.autograd.grad(found.flat @ weights, logits(relaxations))
    wanted = torch.autograd.grad(torch.cat(wanted) @ weights, logits(relaxations))
    torch.testing.assert_close(found, wanted)


def test_several_logits_at_once(relaxations):
    batch = BatchedRelaxation(relaxations, {'composite'})
    theta = torch.randn(3, 2, batch.theta().numel())
    found = batch.packed(batch.probs(theta))
    for i in range(3):
        for k in range(2):
            wanted = batch.packed(batch.probs(theta[i, k]))
            torch.testing.assert_close(found[i, k], wanted)


@pytest.mark.parametrize('mixing', MIXINGS)
def test_handed_is_what_each_would_compute(relaxations, mixing):
    batch, sampled = BatchedRelaxation(relaxations, {mixing}), mixing == 'sampled'
    batch.draw(torch.Generator().manual_seed(1))
    own = [shares(r, sampled) for r in relaxations]
    handed = batch.hand()
    got = [shares(r, sampled) for r in relaxations]
    assert all(g is not o and g.stamp for g, o in zip(got, own, strict=True))

    def values(each):
        kinds = [[s.block, s.layers] for s in each]
        if mixing != 'outputs':
            kinds = [[s.block, s.layers, *s.marginals] for s in each]
        return [t for kind in kinds for t in kind]

    found, wanted = values(got), values(own)
    torch.testing.assert_close(found, wanted)
    weights = [torch.randn_like(t) for t in wanted]
    loss = sum((t * w).sum() for t, w in zip(found, weights, strict=True))
    leaves = torch.autograd.grad(loss, handed.leaves, allow_unused=True)
    total = handed.through(leaves)
    loss = sum((t * w).sum() for t, w in zip(wanted, weights, strict=True))
    wanted = torch.autograd.grad(loss, logits(relaxations))
    torch.testing.assert_close(total, torch.cat(wanted), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(handed.probs.flat.sum(), handed.theta)[0].shape


@pytest.mark.parametrize('sampled', [False, True])
def test_the_model_may_be_differentiated_more_than_once(sampled):
    """As with reentrant checkpoints, or two losses: the gradients add up."""
    relaxation = Softmax(PAIRS)
    relaxation.choice = 1
    relaxation.logits.requires_grad_(True)
    mixing = 'sampled' if sampled else 'composite'
    handed = BatchedRelaxation([relaxation], {mixing}).hand()
    weights = torch.randn(2, len(PAIRS))
    for w in weights:
        (shares(relaxation, sampled).block @ w).backward()
    assert relaxation.logits.grad is None
    found = handed.through([leaf.grad for leaf in handed.leaves])
    wanted = torch.autograd.grad(
        relaxation.probs() @ weights.sum(0), relaxation.logits
    )[0]
    torch.testing.assert_close(found, wanted)


CHANGES = {
    'logits': lambda r: r.logits.detach().zero_(),
    'load': lambda r: r.load_state_dict(
        dict(r.state_dict(), logits=torch.zeros_like(r.logits))
    ),
    'noise': lambda r: r.draw(torch.Generator().manual_seed(9)),
    'epoch': lambda r: setattr(r, 'epoch', 9.0),
    'evaluation': lambda r: r.eval(),
    'gradient': lambda r: r.logits.requires_grad_(True),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=list(CHANGES))
def test_nothing_stale_is_mixed_with(change):
    relaxation = GumbelSoftmax(PAIRS, temperature=5.0, anneal=0.1)
    with torch.no_grad():
        relaxation.logits.normal_()
    batch = BatchedRelaxation([relaxation], {'composite'})
    batch.draw(torch.Generator().manual_seed(0))
    batch.hand()
    assert torch.equal(shares(relaxation, False).block, relaxation.mixture())
    before = shares(relaxation, False)
    assert before.stamp
    change(relaxation)
    after = shares(relaxation, False)
    assert after is not before
    torch.testing.assert_close(after.block, relaxation.mixture())
    assert after.block.requires_grad == relaxation.logits.requires_grad


def test_another_path_is_not_the_one_handed():
    relaxation = Softmax(PAIRS)
    relaxation.logits.requires_grad_(True)
    relaxation.choice = 1
    batch = BatchedRelaxation([relaxation], {'sampled'})
    batch.hand()
    assert shares(relaxation, True).stamp
    assert not shares(relaxation, False).stamp
    relaxation.choice = 2
    assert shares(relaxation, True).block.argmax() == 2


def test_release_and_copies():
    layer = MixedConv2d(3, 4, 1, candidates=PAIRS)
    layer.relaxation.logits.requires_grad_(True)
    handed = BatchedRelaxation([layer.relaxation], {'composite'}).hand()
    assert shares(layer.relaxation, False).stamp
    twin = copy.deepcopy(layer)
    assert not shares(twin.relaxation, False).stamp
    handed.release()
    assert not shares(layer.relaxation, False).stamp


def test_a_weight_step_is_handed_no_gradient():
    relaxation = Softmax(PAIRS)
    handed = BatchedRelaxation([relaxation], {'composite'}).hand()
    assert not shares(relaxation, False).block.requires_grad
    assert handed.through([None] * len(handed.leaves)) is None


def test_noise_is_that_of_each_drawing_alone():
    alone = [GumbelSoftmax(PAIRS), GumbelSoftmax(GRID, factorised=True)]
    together = copy.deepcopy(alone)
    generator = torch.Generator().manual_seed(4)
    for r in alone:
        r.draw(generator)
    batch = BatchedRelaxation(together, {'outputs'})
    drawn = batch.draw(torch.Generator().manual_seed(4))
    for a, b, n in zip(alone, together, drawn, strict=True):
        assert torch.equal(a.noise, b.noise) and torch.equal(a.noise, n)


def test_a_type_of_its_own_is_not_taken_for_granted():
    class Sharper(Softmax):
        def probs(self):
            return self._relax(self.logits, 0.1)

    assert BatchedRelaxation.accepts([Softmax(PAIRS), GumbelSoftmax(PAIRS)])
    for other in (Sharper, UniformSampling):
        assert not BatchedRelaxation.accepts([Softmax(PAIRS), other(PAIRS)])


def test_handed_to_layers_of_every_mixing():
    """Forward and gradients of a layer that is handed its coefficients are its own."""
    x = torch.randn(2, 3, 5, 5)
    for mixing in MIXINGS:
        layer = MixedConv2d(3, 4, 3, candidates=PAIRS, mixing=mixing)
        relaxation = layer.relaxation
        nn.init.normal_(relaxation.logits)
        relaxation.choice = 2
        relaxation.logits.requires_grad_(True)
        layer(x)
        wanted = layer(x)
        grad = torch.randn_like(wanted)
        (slope,) = torch.autograd.grad(wanted, relaxation.logits, grad)
        handed = BatchedRelaxation([relaxation], {mixing}).hand()
        found = layer(x)
        torch.testing.assert_close(found, wanted)
        leaves = torch.autograd.grad(found, handed.leaves, grad, allow_unused=True)
        torch.testing.assert_close(handed.through(leaves), slope, rtol=1e-4, atol=1e-4)
