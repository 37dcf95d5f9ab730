"""A search in a plain loop: what it keeps, how it goes on, and what it refuses."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mmmpq
from mmmpq.search import History, Problem, Search, record_of

COUNT = 12
SHAPE = (3, 8, 8)


def supernet(**quant):
    torch.manual_seed(0)
    layers = []
    for i, o in ((3, 4), (4, 4), (4, 6)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    quant = {'groups': 'layer', 'ends': 'fixed', **quant}
    mmmpq.quantize(net, ['W2A2', 'W4A4', 'W8A8'], **quant)
    mmmpq.calibrate(net, [batch(0)[0]])
    return net


def batch(i):
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(8, *SHAPE, generator=generator)
    return x, torch.arange(8) % 4


def loop(search, first=0, last=COUNT, weights=None):
    """Trains from one iteration to another: logits (L,), optimizer of the weights."""
    net = search.model
    if weights is None:
        weights = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)

    def loss(i):
        x, y = batch(i)
        return F.cross_entropy(net(x), y)

    for i in range(first, last):
        search.draw(i)
        if search.is_due(i) and not search.settings.joint:
            search.step(i, lambda i=i: loss(100 + i))
        weights.zero_grad()
        with search.mixing(i):
            task = loss(i)
            task.backward()
        if search.is_due(i) and search.settings.joint:
            search.gather(task)
            search.joint_step(i)
        weights.step()
    return torch.cat(search.space.logits).clone(), weights


@pytest.mark.parametrize('joint', [False, True])
@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_expected_costs_stay_inside_and_the_choice_fits(mixing, joint):
    search = Search(
        supernet(mixing=mixing), ['W4A4', '0.9*W8A8'], input_shape=SHAPE, joint=joint
    )
    search.begin(COUNT)
    logits, _ = loop(search)
    assert search.steps == COUNT - 2 and logits.any()
    expected = search.tables.expected(search.space.probs())
    for value, table, bound in zip(
        expected, search.tables, search.bounds(COUNT - 1), strict=True
    ):
        assert value < bound == table.limit
    assert all(not p.requires_grad and p.grad is None for p in search.space.logits)
    measured = []

    def loss():
        measured.append([g.relaxation.choice for g in search.space.groups])
        return F.cross_entropy(search.model(batch(7)[0]), batch(7)[1])

    choice = search.choose(loss, samples=3)
    assert choice in measured
    policy = search.policy(choice)
    budgets = policy.meta['budgets']
    assert [b['given'] for b in budgets] == ['W4A4', dict(of='W8A8', ratio=0.9)]
    assert all(b['cost'] <= b['limit'] for b in budgets)
    assert search.policy().layers == search.space.policy(search.most_probable()).layers


@pytest.mark.parametrize('joint', [False, True])
def test_a_search_that_was_stopped_goes_on_as_if_it_was_not(joint):
    options = dict(
        budgets=['W4A4'],
        input_shape=SHAPE,
        joint=joint,
        scheduler=dict(type='CosineAnnealingLR'),
        seed=5,
    )
    quant = dict(relaxation=dict(type='GumbelSoftmax', temperature=2.0))
    whole = Search(supernet(**quant), **options)
    whole.begin(COUNT)
    wanted, _ = loop(whole)

    first = Search(supernet(**quant), **options)
    first.begin(COUNT)
    _, weights = loop(first, last=5)
    saved = copy.deepcopy(
        (first.model.state_dict(), first.state_dict(), weights.state_dict())
    )
    second = Search(supernet(**quant), **options)
    second.model.load_state_dict(saved[0])
    second.begin(COUNT, state=saved[1])
    weights = torch.optim.SGD(second.model.parameters(), 0.05, momentum=0.9)
    weights.load_state_dict(saved[2])
    found, _ = loop(second, first=5, weights=weights)
    assert torch.equal(found, wanted)
    assert second.last == whole.last and second.steps == whole.steps


def test_a_history_is_one_for_the_report(tmp_path):
    from mmmpq.visualization.history import SearchHistory

    search = Search(supernet(), ['W4A4'], input_shape=SHAPE)
    search.begin(COUNT)
    history = History(tmp_path)
    history.begin(search)
    loop(search)
    history.append(json.loads(json.dumps(record_of(search, COUNT - 1, loss=0.5))))
    (record,) = SearchHistory.load(history.path).records
    assert record['loss'] == 0.5 and record['penalties'] == {
        name: search.last[name] for name in ('barrier', 'prob1')
    }


def test_several_problems_on_one_space():
    """Other budgets of one supernet, without a search between."""
    net = supernet()
    first = Problem(net, ['W2A2'], SHAPE)
    others = [Problem(net, [b], SHAPE, space=first.space) for b in ('W4A4', 'W8A8')]
    costs = [p.counted[0].of(p.policy()) for p in (first, *others)]
    assert costs == sorted(costs) and len(first.space._profiles) == 1
    cheap = [torch.tensor([1.0, 0.0, 0.0])] * len(first.space.groups)
    assert others[1].choose(probs=cheap) == first.choose()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(budgets=[]), r'Search\.budgets: found none'),
        (dict(budgets=['W1A1']), r'cannot be met: the candidates span \['),
        (dict(budgets=['3 apples']), "unknown unit 'apples'"),
        (dict(budgets=[3]), r'Search\.budgets: found \[3\]'),
        (dict(budgets=['W4A4'], start='warm'), r"Search\.start: found 'warm'"),
        (dict(budgets=['W4A4'], warmup=1), r'Search\.warmup: found 1'),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        Search(supernet(), input_shape=SHAPE, **args)


@pytest.mark.parametrize('limit', ['W3A3', '0.9*W4A4', 'W8A8'])
def test_candidates_by_pattern(limit):
    """Ends with widths of their own: a budget counts them, and is kept."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )
    widths = ['W2A2', 'W3A3', 'W4A4', 'W8A8']
    patterns = {'*': widths, '0': ['W4A4', 'W2A3'], '6': ['W3A3', 'W8A8']}
    mmmpq.quantize(net, patterns, groups='layer')
    mmmpq.calibrate(net, [batch(0)[0]])
    search = Search(net, [limit], input_shape=SHAPE, log=lambda _: None)
    search.begin(COUNT)
    loop(search)
    policy = search.policy(search.choose())
    (spent,) = policy.meta['budgets']
    assert spent['cost'] <= spent['limit']
    assert policy.layers['0'] in {(4, 4), (2, 3)}
    assert policy.layers['6'] in {(3, 3), (8, 8)}
    mmmpq.apply_policy(net, policy)
    assert mmmpq.cost(net, SHAPE).total['bops'] == pytest.approx(spent['cost'])
