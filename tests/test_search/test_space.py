"""Groups of a model, and cost tables against costs counted layer by layer."""

import pytest
import torch
from torch import nn

from mmmpq.costs import Budget, CostAt, total_cost
from mmmpq.policy import FLOAT, Precision
from mmmpq.search import SearchSpace, cost_tables, pricing


def test_groups_and_fixed_layers(problem):
    _, space, _ = problem()
    assert [g.layers for g in space.groups] == [
        ['convs.1'],
        ['convs.2'],
        ['convs.3'],
        ['twice'],
    ]
    assert space.fixed == {'convs.0': Precision(8, 8), 'fc': Precision(8, 8)}
    assert space.order[0] == 'convs.0' and space.order[-1] == 'fc'
    assert not any(logits.requires_grad for logits in space.logits)
    assert torch.allclose(torch.stack(space.probs()).sum(1), torch.ones(4))


def test_layers_of_a_group_share_one_choice(problem):
    _, space, _ = problem(groups=[['convs.1', 'convs.3']])
    policy = space.policy([3, 0, 6])
    assert [len(g.layers) for g in space.groups] == [2, 1, 1]
    assert policy.layers == {
        'convs.0': (8, 8),
        'convs.1': (3, 3),
        'convs.2': (2, 2),
        'convs.3': (3, 3),
        'twice': (8, 8),
        'fc': (8, 8),
    }
    assert list(policy.layers) == space.order


@pytest.mark.parametrize('kind', ['BOPs', 'WeightBytes', 'ActivationBytes'])
def test_table_is_the_sum_over_layers(problem, kind):
    _, space, (table,) = problem((kind, 'W4A4'), groups=[['convs.1', 'convs.3']])
    everything = [
        sum(table.cost(p, space.fixed.get(p.name, c)) for p in table.profiles)
        for c in space.groups[0].candidates
    ]
    for j, uniform in enumerate(everything):
        choice = [j] * len(space.groups)
        total = table.constant + sum(float(v[j]) for v in table.values)
        assert total == pytest.approx(uniform)
        assert table.of(space.policy(choice)) == pytest.approx(uniform)
        assert table.uniform(space.groups[0].candidates[j]) == pytest.approx(uniform)
    assert table.limit == pytest.approx(table.uniform(Precision(4, 4)))
    assert table.min == pytest.approx(min(everything))
    assert table.max == pytest.approx(max(everything))
    one_hot = [torch.eye(len(v))[2] for v in table.values]
    assert float(table.expected(one_hot)) == pytest.approx(everything[2])


def test_bops_of_a_shared_layer_count_per_call_and_its_bytes_once(problem):
    _, _, (bops, size) = problem(('BOPs', 'W4A4'), ('WeightBytes', 'W4A4'))
    # 'twice' maps 12 channels to 12 at 4 x 4, two times
    assert bops.values[-1][0] == 2 * 12 * 12 * 16 * 2 * 2
    assert size.values[-1][0] == 12 * 12 * 2 / 8


def test_expected_cost_has_the_gradient_of_a_mean(problem):
    _, space, (table,) = problem(('BOPs', 'W3A3'))
    for logits in space.logits:
        logits.requires_grad_(True)
    probs = space.probs()
    table.expected(probs).backward()
    for logits, p, values in zip(space.logits, probs, table.values, strict=True):
        mean = (p.double() * values).sum()
        wanted = p.double() * (values - mean)
        assert torch.allclose(logits.grad.double(), wanted, rtol=1e-4, atol=1)


def test_unsearched_float_layers_are_constant(problem):
    _, space, (table,) = problem(('WeightBytes', 'W4A4'), exclude=['fc'])
    fc = next(p for p in table.profiles if p.name == 'fc')
    stem = next(p for p in table.profiles if p.name == 'convs.0')
    constant = fc.weights * 4 + stem.weights
    assert table.constant == constant
    assert 'fc' not in space.order
    assert table.of(space.policy([0] * 4)) == pytest.approx(
        total_cost(table.cost, table.profiles, space.policy([0] * 4).layers)
    )
    assert table.cost(fc, FLOAT) == fc.weights * 4


def test_impossible_budget_says_what_the_candidates_span(problem):
    _, _, (table,) = problem(('BOPs', '10 BOPs'))
    with pytest.raises(
        ValueError, match=r"budget\.limit: BOPs '10 BOPs'.* span \[\d"
    ) as error:
        table.check()
    assert f'{table.min:.6g}, {table.max:.6g}' in str(error.value)


def test_a_budget_that_only_the_cheapest_choice_meets(problem):
    _, _, (table,) = problem(('BOPs', 'W2A2'))
    assert table.min == table.limit
    table.check()


def test_a_model_without_mixed_layers():
    with pytest.raises(ValueError, match=r'model: has no layer to search.*QuantModel'):
        SearchSpace(nn.Conv2d(3, 3, 1))


def test_each_reference_input_is_profiled_once(problem, monkeypatch):
    from mmmpq.search import space as module

    model, space, _ = problem()
    shapes, profile = [], module.profile
    monkeypatch.setattr(
        module, 'profile', lambda m, s, p: shapes.append(s) or profile(m, s, p)
    )
    budgets = [
        Budget.build(dict(type=kind, limit='W4A4', input_shape=(3, n, n)))
        for kind, n in [('BOPs', 16), ('WeightBytes', 16), ('BOPs', 32)]
    ]
    small, _, large = cost_tables(model, space, budgets)
    assert shapes == [(3, 16, 16), (3, 32, 32)]
    assert large.limit > 3 * small.limit


def test_the_same_seed_draws_the_same_paths(problem):
    _, space, _ = problem(relaxation=dict(type='GumbelSoftmax'), mixing='sampled')

    def drawn(seed):
        space.draw(torch.Generator().manual_seed(seed))
        noise = [g.relaxation.noise.clone() for g in space.groups]
        return [g.relaxation.choice for g in space.groups], torch.stack(noise)

    (choice, noise), (again, same), (_, other) = drawn(1), drawn(1), drawn(2)
    assert choice == again and torch.equal(noise, same) and None not in choice
    assert not torch.equal(noise, other)


def test_paths_follow_the_probabilities_and_see_the_logits_change(problem):
    _, space, _ = problem(mixing='sampled')
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4, 7)
    with torch.no_grad():
        for logits in space.logits:
            logits.normal_(generator=generator)
    draws = 2000
    for _ in range(draws):
        space.fetch()  # as after a step of the logits
        space.draw(generator)
        for row, group in zip(counts, space.groups, strict=True):
            row[group.relaxation.choice] += 1
    p = torch.stack(space.probs())
    assert ((counts / draws - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt()).all()
    space.move(torch.eye(7)[3].repeat(4) * 1e4)  # after the fetch
    space.draw(generator)
    assert [g.relaxation.choice for g in space.groups] == [3] * 4


def test_where_nothing_is_sampled_nothing_is_read(problem, monkeypatch):
    _, space, _ = problem(relaxation=dict(type='GumbelSoftmax'))
    monkeypatch.setattr('mmmpq.search.space.Fetch', None)
    space.fetch()
    space.draw(torch.Generator())
    assert all(g.relaxation.noise.any() for g in space.groups)
    assert all(g.relaxation.choice is None for g in space.groups)


def test_drawing_leaves_out_of_outputs_what_has_no_share(problem):
    _, space, _ = problem(mixing='outputs')
    space.move(torch.tensor([9.0, -9, -9, -9, 9, 9, 9]).repeat(4))
    space.draw(torch.Generator())
    assert [g.relaxation.active() for g in space.groups] == [[0, 4, 5, 6]] * 4


@pytest.mark.parametrize('kind', ['Softmax', 'OwnSoftmax'])
def test_all_budgets_at_once_are_each_of_them(problem, kind):
    _, space, tables = problem(
        ('BOPs', 'W3A3'), ('WeightBytes', 'W4A4'), relaxation=dict(type=kind)
    )
    probs = space.probs()
    found = tables.expected(probs)
    wanted = [float(t.expected(probs)) for t in tables]
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(wanted)
    assert (space.batch is None) == (kind == 'OwnSoftmax')


@pytest.mark.parametrize('kind', ['BOPs', 'WeightBytes'])
def test_prices_are_a_table_without_a_bound(problem, kind):
    model, space, (table,) = problem((kind, 'W4A4'))
    cfg = dict(type=kind, input_shape=(3, 16, 16))
    prices = pricing(model, space)(CostAt.build(cfg))
    probs = space.probs()
    assert prices.profiles == table.profiles and not hasattr(prices, 'limit')
    assert all(map(torch.equal, prices.values, table.values))
    assert (prices.name, prices.min, prices.max) == (kind, table.min, table.max)
    assert prices.expected(probs) == table.expected(probs)
    searched = prices.expected_searched(probs) + prices.constant
    assert searched == prices.expected(probs)
    assert [p.name for p in prices.searched] == [g.layers[0] for g in space.groups]
