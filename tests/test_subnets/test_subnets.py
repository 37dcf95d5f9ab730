"""The subnets of a supernet: bits of groups and choices of elastic modules."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmmpq.models import quantize
from mmmpq.policy import Policy, Precision
from mmmpq.quantizers import BatchQuantizer
from mmmpq.subnets import SubnetSpace
from mmmpq.subnets.code import GeneCode

GRID = [(w, a) for w in (4, 3, 2) for a in (2, 3, 4)]
SUPERNET = dict(
    mixing='sampled',
    relaxation=dict(type='UniformSampling'),
    w_quantizer=dict(type='LSQQuantizer'),
    a_quantizer=dict(type='BatchQuantizer'),
)


def encode(space, subnets):
    code = GeneCode(space)
    return code.one_hot(code.of(subnets))


class Stage(nn.Module):
    """One or two convs, whose outputs are multiplied by a factor."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.activate(dict(depth=2, factor=1.0))

    def genes(self):
        return dict(depth=(1, 2), factor=(0.5, 1.0))

    def activate(self, values):
        self.depth, self.factor = values['depth'], values['factor']

    def idle(self, values):
        return ['factor', 'convs.1'] if values['depth'] == 1 else []

    def forward(self, x):
        x = self.convs[0](x)
        return self.factor * self.convs[1](x.relu()) if self.depth == 2 else x


class Net(nn.Module):
    def __init__(self, elastic=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage = Stage() if elastic else nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.last(self.stage(self.stem(x)).relu()).mean((2, 3)))


@pytest.fixture
def make():
    def build(elastic=True, candidates=GRID, **quant):
        quant = {'groups': 'layer', 'ends': 'fixed', **SUPERNET, **quant}
        model = quantize(Net(elastic), candidates=candidates, **quant)
        return model, SubnetSpace(model)

    return build


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


ORDER = ['W2A2', 'W2A3', 'W3A2', 'W2A4', 'W4A2', 'W3A3', 'W3A4', 'W4A3', 'W4A4']


def test_genes_go_from_the_smallest_value_to_the_largest(make):
    _, space = make()
    layers = ['stage.convs.0', 'stage.convs.1', 'last', 'out']
    assert list(space.genes) == [*layers, 'depth', 'factor']
    assert [str(p) for p in space.genes['last']] == ORDER
    assert space.genes['depth'] == (1, 2)
    assert space.architecture == ['depth', 'factor']
    assert math.prod(map(len, space.genes.values())) == 9**4 * 4
    assert set(space.smallest().values()) == {(2, 2), 1, 0.5}
    assert set(space.largest().values()) == {(4, 4), 2, 1.0}
    assert list(map(str, space.precisions)) == ['W2A2', 'W3A3', 'W4A4']
    middle = space.largest(Precision(3, 3))
    assert middle['last'] == (3, 3) and middle['depth'] == 2


def test_groups_share_a_gene(make):
    _, space = make(groups=[['stage.convs.*']])
    assert list(space.genes) == ['stage.convs.*', 'last', 'out', 'depth', 'factor']
    subnet = space.largest()
    policy = space.policy(subnet)
    assert policy.layers['stage.convs.0'] == policy.layers['stage.convs.1'] == (4, 4)
    assert space.subnet(policy) == subnet


def test_samples_are_uniform_and_repeat(make, generator):
    _, space = make()
    drawn = [space.sample(generator) for _ in range(1800)]
    for gene, values in space.genes.items():
        counts = [sum(s[gene] == v for s in drawn) for v in values]
        expected = len(drawn) / len(values)
        assert all(abs(c - expected) < 4 * expected**0.5 for c in counts), gene
    together = sum(s['last'] == s['out'] for s in drawn)
    assert abs(together - 200) < 60  # independent
    again = torch.Generator().manual_seed(0)
    assert [space.sample(again) for _ in range(5)] == drawn[:5]


def test_one_precision_everywhere(make, generator):
    _, space = make()
    drawn = [space.sample(generator, one_precision=True) for _ in range(60)]
    found = [{s[g] for g in space.groups} for s in drawn]
    assert all(len(f) == 1 for f in found)
    assert set.union(*found) == set(space.precisions)
    assert {s['depth'] for s in drawn} == {1, 2}


def test_an_active_subnet_is_what_computes(make, generator):
    model, space = make()
    x = torch.randn(2, 3, 8, 8)
    subnet = {**space.sample(generator), 'depth': 2, 'factor': 0.5}
    space.activate(subnet)
    assert space.active == subnet
    widths = []
    for name, module in model.named_modules():
        if isinstance(module, BatchQuantizer):
            forward = module.forward
            module.forward = lambda x, bits, n=name, f=forward: (
                widths.append((n.rpartition('.')[0], bits)),
                f(x, bits),
            )[1]
    model(x)
    searched = {n: b for n, b in widths if n in space.groups}
    assert searched == {g: subnet[g].a_bits for g in space.groups}
    assert model.stage.factor == 0.5
    space.activate({**subnet, 'depth': 1})
    widths.clear()
    model(x)
    assert 'stage.convs.1' not in dict(widths)


def test_a_subnet_that_is_not_calibrated_is_not_evaluated(make):
    model, space = make(elastic=False)
    x = torch.randn(2, 3, 8, 8)
    space.activate(space.largest())
    quantizers = [m for m in model.modules() if isinstance(m, BatchQuantizer)]
    for quantizer in quantizers:
        quantizer.set_statistics(torch.tensor([-1.0, 1.0]))
    first = model.eval()(x)
    space.activate(space.smallest())
    with pytest.raises(ValueError, match='no statistics'):
        model(x)
    for quantizer in quantizers:
        quantizer.set_statistics(torch.tensor([-1.0, 1.0]))
    assert not torch.allclose(model(x), first)


def test_codes_are_one_hot_and_equal_for_equal_nets(make, generator):
    _, space = make()
    subnets = [space.sample(generator) for _ in range(20)]
    code = encode(space, subnets)
    assert code.shape == (20, 4 * 9 + 4) and code.dtype == np.float32
    for row, subnet in zip(code, subnets, strict=True):
        assert row.sum() == (6 if subnet['depth'] == 2 else 4)
        at = 0
        for gene, values in space.genes.items():
            part = row[at : at + len(values)]
            if gene not in space.idle(subnet):
                assert values[part.argmax()] == subnet[gene] and part.sum() == 1
            at += len(values)
    short = dict(space.largest(), depth=1)
    same = {**short, 'factor': 0.5, 'stage.convs.1': Precision(2, 3)}
    assert space.idle(short) == {'factor', 'stage.convs.1'}
    assert np.array_equal(*encode(space, [short, same]))
    assert space.canonical(short) == space.canonical(same)
    assert space.canonical(space.largest()) == space.largest()


def test_policy_and_back_through_json(make, generator, tmp_path):
    _, space = make()
    for i in range(10):
        subnet = space.sample(generator)
        stored = json.loads(json.dumps(subnet))
        space.check(stored)
        policy = space.policy(stored)
        assert list(policy.layers) == space.layers(subnet)
        assert ('stage.convs.1' in policy.layers) == (subnet['depth'] == 2)
        assert policy.layers['stem'] == (8, 8)
        assert policy.meta['architecture']['depth'] == subnet['depth']
        loaded = Policy.load(policy.save(tmp_path / f'{i}.json'))
        assert space.subnet(loaded) == space.canonical(subnet)
        assert np.array_equal(*encode(space, [stored, space.subnet(loaded)]))


def test_policy_of_bits_alone_has_no_architecture(make):
    _, space = make(elastic=False)
    policy = space.policy(space.smallest())
    assert set(policy.meta) == {'quant'}
    assert list(policy.layers) == ['stem', 'stage', 'last', 'out']
    assert space.subnet(policy) == space.smallest()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'depth': 3}, r"gene 'depth': found 3; accepted are 1, 2"),
        ({'last': (8, 8)}, r"gene 'last': found \(8, 8\); accepted are W2A2, W2A3"),
        ({'last': Precision(5, 5)}, "gene 'last': found W5A5"),
        ({'dept': 1}, "no gene 'dept'; near names: depth"),
    ],
)
def test_a_subnet_outside_of_the_space(make, change, message):
    _, space = make()
    subnet = {**space.largest(), **change}
    for refuse in (space.check, space.activate, space.policy):
        with pytest.raises(ValueError, match=message):
            refuse(subnet)


def test_a_subnet_that_lacks_a_gene(make):
    _, space = make()
    subnet = space.largest()
    del subnet['depth']
    with pytest.raises(ValueError, match="gene 'depth' is missing"):
        space.check(subnet)


def test_policies_outside_of_the_space(make):
    _, space = make(groups=[['stage.convs.*']])
    policy = space.policy(space.largest())
    policy.meta['architecture']['depth'] = 4
    with pytest.raises(ValueError, match="gene 'depth': found 4; accepted are 1, 2"):
        space.subnet(policy)
    policy = space.policy(space.largest())
    policy.layers['out'] = Precision(8, 8)
    with pytest.raises(ValueError, match="gene 'out': found W8A8"):
        space.subnet(policy)
    policy = space.policy(space.largest())
    policy.layers['stage.convs.1'] = Precision(2, 2)
    with pytest.raises(
        ValueError, match=r'stage\.convs\.1: found W2A2; accepted is W4'
    ):
        space.subnet(policy)
    policy = space.policy(space.largest())
    policy.layers['stem'] = Precision(4, 4)
    with pytest.raises(ValueError, match='stem: found W4A4; accepted is W8A8'):
        space.subnet(policy)
    policy = space.policy(dict(space.largest(), depth=1))
    policy.meta['architecture']['depth'] = 2
    with pytest.raises(ValueError, match=r'only in the model: stage\.convs\.1'):
        space.subnet(policy)
    with pytest.raises(ValueError, match=r"architecture has no gene 'depth'"):
        space.subnet(Policy(space.policy(space.largest()).layers))


def test_models_that_have_no_subnets():
    with pytest.raises(ValueError, match='has no subnets'):
        SubnetSpace(Net(elastic=False))
    model = quantize(Net(), candidates=GRID, mixing='composite')
    with pytest.raises(ValueError, match=r"mixing: found 'composite'"):
        SubnetSpace(model)
    model = Net()
    model.again = Stage()
    with pytest.raises(ValueError, match="gene 'depth' of again"):
        SubnetSpace(model)


def test_an_elastic_float_net_has_subnets(generator):
    space = SubnetSpace(Net())
    assert list(space.genes) == ['depth', 'factor']
    assert space.precisions == () and space.draw_precision(generator) is None
    assert space.sample(generator, one_precision=True).keys() == space.genes.keys()
    assert space.largest(None) == dict(depth=2, factor=1.0)


def test_groups_without_a_common_precision(make, generator):
    model, space = make()
    model.last.relaxation.candidates = (Precision(8, 8), Precision(8, 4))
    space = SubnetSpace(model)
    with pytest.raises(ValueError, match='no candidate in common'):
        space.sample(generator, one_precision=True)
