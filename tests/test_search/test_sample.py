"""Choices drawn from the probabilities: their distribution, and inside the budgets."""

from itertools import product

import pytest
import torch

from mmmpq.search import most_probable, sample_choices

BUDGETS = {
    'none': [],
    'W3A3': [('BOPs', 'W3A3')],
    'both': [('BOPs', 'W3A3'), ('WeightBytes', dict(of='W3A3', ratio=0.9))],
}


def randomise(space, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in space.logits:
            logits.copy_(scale * torch.randn(logits.shape, generator=generator))


def draw(space, tables, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample_choices(space, tables, count, generator)


def test_without_a_budget_each_group_follows_its_probabilities(problem):
    """Each draw on its own, since equal ones are dropped."""
    _, space, _ = problem()
    randomise(space)
    generator, counts = torch.Generator().manual_seed(1), torch.zeros(4, 7)
    draws = 3000
    for _ in range(draws):
        (choice,) = sample_choices(space, [], 1, generator)
        for g, j in enumerate(choice):
            counts[g, j] += 1
    p = torch.stack(space.probs())
    sigma = (p * (1 - p) / draws).sqrt()
    assert ((counts / draws - p).abs() < 4.5 * sigma).all()


@pytest.mark.parametrize('budgets', BUDGETS.values(), ids=list(BUDGETS))
def test_they_fit_differ_and_repeat_with_the_seed(problem, budgets):
    _, space, tables = problem(*budgets)
    randomise(space)
    choices = draw(space, tables, 30)
    assert len(choices) > 5
    assert len({tuple(c) for c in choices}) == len(choices)
    for choice in choices:
        policy = space.policy(choice)
        assert all(t.of(policy) <= t.limit for t in tables)
    assert draw(space, tables, 30) == choices
    assert draw(space, tables, 30, seed=1) != choices


def test_as_much_as_possible_of_what_was_drawn_is_kept(problem):
    """Against all choices that fit: agreement first, probability second."""
    _, space, tables = problem(
        ('BOPs', dict(of='W3A3', ratio=1.3)),
        candidates=[(2, 2), (3, 3), (4, 4), (8, 8)],
    )
    randomise(space)
    probs = [p.tolist() for p in space.probs()]
    fitting = [
        c
        for c in product(range(4), repeat=4)
        if all(t.of(space.policy(c)) <= t.limit for t in tables)
    ]
    replaced = 0
    for seed in range(15):
        (drawn,), (found,) = draw(space, [], 1, seed), draw(space, tables, 1, seed)
        if tuple(drawn) in fitting:
            assert found == drawn
            continue
        replaced += 1

        def score(choice, drawn=drawn):
            same = sum(a == b for a, b in zip(choice, drawn, strict=True))
            return same + sum(p[j] for p, j in zip(probs, choice, strict=True)) / 4

        assert score(found) == pytest.approx(max(map(score, fitting)), rel=1e-3)
    assert replaced > 2


def test_decided_logits_give_one_choice(problem):
    _, space, tables = problem(('BOPs', 'W8A8'))
    randomise(space, scale=5000)
    assert draw(space, tables, 10) == [most_probable(space, tables)]
    assert draw(space, tables, 0) == []
