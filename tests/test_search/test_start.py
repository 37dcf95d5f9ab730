"""Feasible starts, the bound that shrinks to the budget, and the way back inside."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.search import bias_logits, bounds, project, solve
from mmmpq.search.start import _smallest, _smallest_at_once

BOTH = (('BOPs', 'W3A3'), ('WeightBytes', '700 B'))
FACTORISED = dict(
    candidates=[(w, a) for w in (2, 4, 8) for a in (2, 4, 8)],
    relaxation=dict(type='Softmax', factorised=True),
)
WARM = dict(relaxation=dict(type='Softmax', temperature=2.0))
OWN = dict(relaxation=dict(type='OwnSoftmax'))


def expected(space, tables):
    return [float(t.expected(space.probs())) for t in tables]


def fill(space, values):
    with torch.no_grad():
        for logits, value in zip(space.logits, values, strict=True):
            logits.copy_(value)


def randomise(space, seed, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    fill(
        space,
        [spread * torch.randn(x.shape, generator=generator) for x in space.logits],
    )


@pytest.mark.parametrize(
    'quant', [{}, FACTORISED, WARM, OWN], ids=['', 'wa', 'T=2', 'own']
)
@pytest.mark.parametrize('budgets', [BOTH[:1], BOTH], ids=['bops', 'both'])
def test_biased_start_is_the_smallest_that_is_feasible(problem, budgets, quant):
    _, space, tables = problem(*budgets, **quant)
    c = bias_logits(space, tables, margin=0.02)
    assert c > 0
    shares = [
        e / (0.98 * t.limit)
        for e, t in zip(expected(space, tables), tables, strict=True)
    ]
    assert max(shares) == pytest.approx(1, abs=1e-5)
    fill(space, [0.99 * logits for logits in space.logits])
    assert any(
        e > 0.98 * t.limit for e, t in zip(expected(space, tables), tables, strict=True)
    )


def test_biased_start_follows_its_formula(problem):
    _, space, (table,) = problem(('BOPs', 'W3A3'))
    c = bias_logits(space, [table])
    for logits, values in zip(space.logits, table.values, strict=True):
        assert torch.allclose(logits.double(), -c * values / values.mean(), rtol=1e-4)


def test_no_bias_where_none_is_needed(problem):
    _, space, tables = problem(('BOPs', 'W8A8'))
    assert bias_logits(space, tables) == 0
    assert all(torch.equal(x, torch.zeros_like(x)) for x in space.logits)


def test_margin_gives_way_to_a_tight_budget(problem):
    _, space, (table,) = problem(('BOPs', dict(of='W2A2', ratio=1.001)))
    bias_logits(space, [table], margin=0.02)
    assert expected(space, [table])[0] <= (table.min + table.limit) / 2


def test_budgets_that_pull_against_each_other_are_both_met(problem):
    # Only (2, 8) fits: narrow weights for the one, cheap products for the other.
    _, space, tables = problem(
        ('WeightBytes', dict(of='W2A2', ratio=1.1)),
        ('ActivationBytes', dict(of='W2A2', ratio=1.5)),
        candidates=[(2, 8), (8, 2), (4, 4), (2, 3)],
    )
    bias_logits(space, tables)
    for e, table in zip(expected(space, tables), tables, strict=True):
        assert e < table.limit


def test_bound_falls_from_above_the_start_to_the_budget(problem):
    _, space, tables = problem(('BOPs', 'W3A3'), ('WeightBytes', 'W8A8'))
    start = expected(space, tables)
    path = [bounds(tables, start, t / 100, until=0.6) for t in range(101)]
    for b, table in enumerate(tables):
        values = [row[b] for row in path]
        assert values == sorted(values, reverse=True)
        assert values[0] == max(table.limit, 1.02 * start[b])
        assert values[60:] == [table.limit] * 41
        assert values[30] == pytest.approx(table.limit + (values[0] - table.limit) / 4)
    assert [row[1] for row in path] == [tables[1].limit] * 101


def test_without_continuation_the_bound_is_the_budget(problem):
    _, _, tables = problem(('BOPs', 'W3A3'))
    assert bounds(tables, [1e99], 0.0, until=0.0) == [tables[0].limit]


@pytest.mark.parametrize(
    'quant', [{}, FACTORISED, WARM, OWN], ids=['', 'wa', 'T=2', 'own']
)
@pytest.mark.parametrize('seed', range(5))
def test_projection_ends_inside_every_limit(problem, seed, quant):
    _, space, tables = problem(*BOTH, **quant)
    randomise(space, seed)
    limits = [t.limit for t in tables]
    before = expected(space, tables)
    outside = any(e > 0.999 * n for e, n in zip(before, limits, strict=True))
    assert project(space, tables, limits) == outside
    for e, limit in zip(expected(space, tables), limits, strict=True):
        assert e <= 0.999 * limit
    assert not project(space, tables, limits)


@settings(max_examples=300, deadline=None)
@given(st.floats(0.5, 1), st.integers(-39, 21), st.sampled_from([0, -1e-7, 1e-7]))
def test_two_rounds_find_what_bisection_finds(share, exponent, off):
    at_once(share * 2.0**exponent)
    at_once((round(share * 128) / 128 + off) * 2.0**exponent)  # next to its points


@pytest.mark.parametrize('threshold', [-1.0, 0.0, 2.0**-40, 1.0, 2.0**20, 2.0**22])
def test_two_rounds_at_the_ends(threshold):
    at_once(threshold)


def at_once(threshold):
    wanted = _smallest(lambda c: c >= threshold, tolerance=0.02)
    found = _smallest_at_once(lambda c: c.double() >= threshold, torch.zeros(1))
    assert found == wanted


@pytest.mark.parametrize('quant', [{}, FACTORISED, WARM], ids=['', 'wa', 'T=2'])
@pytest.mark.parametrize('budgets', [BOTH[:1], BOTH], ids=['bops', 'both'])
@pytest.mark.parametrize('seed', range(4))
def test_projection_is_that_by_bisection(problem, seed, budgets, quant):
    """With all limits, one after the other, and reads at every step."""
    _, space, tables = problem(*budgets, **quant)
    randomise(space, seed)
    before = torch.cat(space.logits).detach().clone()
    project(space, tables, [t.limit for t in tables])
    found = torch.cat(space.logits)
    assert not torch.equal(found, before)
    space.move(before)
    batch, space.batch = space.batch, None
    project(space, tables, [t.limit for t in tables])
    space.batch = batch
    torch.testing.assert_close(torch.cat(space.logits), found)


def test_an_accelerator_projects_a_number_of_rounds(problem, monkeypatch):
    """Without a read, as far as its rounds go: here as far as the CPU's."""
    found = []
    for device in ('cpu', 'accelerator'):
        _, space, tables = problem(*BOTH)
        randomise(space, 0)
        if device != 'cpu':
            monkeypatch.setattr('mmmpq.search.start._waits', lambda theta: False)
            monkeypatch.setattr(torch.Tensor, '__bool__', None)
        assert project(space, tables, [t.limit for t in tables]).dtype == torch.bool
        monkeypatch.undo()
        found.append(torch.cat(space.logits))
    assert torch.equal(*found)


def test_projection_leaves_what_is_inside(problem):
    _, space, tables = problem(('BOPs', 'W4A4'))
    fill(space, [torch.tensor([3.0, 0, 0, 2, 0, 0, 0])] * 4)
    before = [x.clone() for x in space.logits]
    assert not project(space, tables, [tables[0].limit])
    assert all(map(torch.equal, before, space.logits))


def test_projection_is_the_nearest_in_kl_divergence(problem):
    """KL(q ‖ p) is not above that of other feasible points on paths towards p."""
    _, space, (table,) = problem(('BOPs', 'W3A3'))
    randomise(space, 0)
    p = [x.double() for x in space.probs()]
    project(space, [table], [table.limit], slack=0.0)
    q = [x.double() for x in space.probs()]

    def divergence(a, b):
        return sum(float((x * (x / y).log()).sum()) for x, y in zip(a, b, strict=True))

    nearest = divergence(q, p)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        other = [
            torch.softmax(x.log() + torch.randn(7, generator=generator), 0) for x in q
        ]
        if float(table.expected(other)) <= table.limit:
            assert divergence(other, p) >= nearest - 1e-3
    tilts = [
        (a / b).log().diff() / -v.diff().double()
        for a, b, v in zip(q, p, table.values, strict=True)
    ]
    rates = torch.cat([t[torch.isfinite(t)] for t in tilts])
    assert rates.max() == pytest.approx(float(rates.min()), rel=0.02)


def test_a_limit_that_only_one_choice_meets_is_approached(problem):
    _, space, (table,) = problem(('BOPs', 'W2A2'))
    project(space, [table], [table.limit])
    assert expected(space, [table])[0] == pytest.approx(table.min, rel=1e-3)
    assert all(torch.isfinite(x).all() for x in space.logits)


def test_two_tight_budgets_leave_the_solver_a_choice(problem):
    _, _, tables = problem(*BOTH)
    scores = [torch.zeros(len(v)).numpy() for v in tables[0].values]
    costs = [[v.numpy() for v in t.values] for t in tables]
    assert solve(scores, costs, [t.limit - t.constant for t in tables])


def test_without_a_budget_nothing_moves(problem):
    _, space, tables = problem(relaxation=dict(type='Softmax', init=0.01))
    before = [p.clone() for p in space.logits]
    assert bias_logits(space, tables) == 0.0
    assert not project(space, tables, [])
    assert bounds(tables, [], 0.5, 0.6) == []
    assert all(map(torch.equal, before, space.logits))
