"""Layers of one weight, and parts that copy others, have one choice and one price."""

import copy

import pytest
import torch
from mmengine.hub import get_config
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.costs import Budget, WeightBytes, profile, total_cost
from mmmpq.costs.copies import copies
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import quantized_layers
from mmmpq.models import apply_policy, quantize
from mmmpq.models.decay import exempt_ranges
from mmmpq.search import Problem, SearchSpace, cost_tables

CANDIDATES = ['W2A2', 'W4A4', 'W8A8']
BUDGET = dict(type='BOPs', limit='W4A4', input_shape=(3, 8, 8))


@MODELS.register_module(force=True)
class Tied(BaseModel):
    """Two convolutions of one weight, between BatchNorms, and one of an embedding."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.between = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.two.weight = self.one.weight
        self.words = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.words.weight
        self.fc = nn.Linear(7, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.norm(self.one(self.stem(inputs).relu())).relu()
        x = self.two(self.between(x).relu()).mean((2, 3))
        return self.fc(self.out(x))


def trained(model, x):
    for _ in range(2):
        model.train()(x).square().sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad
    return model.eval()


def test_tied_layers(tmp_path):
    torch.manual_seed(0)
    model = quantize(Tied(), candidates=CANDIDATES, groups='layer', ends='fixed')
    assert model.quantized_with['float_layers'] == ['out']
    space = SearchSpace(model)
    assert [g.layers for g in space.groups] == [['one', 'two'], ['between']]
    assert model.one.w_quantizer is model.two.w_quantizer
    weights = {p.name: p.weights for p in profile(model, (3, 8, 8))}
    assert (weights['one'], weights['two']) == (144, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    exempt_ranges(optimizer, model)
    x = torch.randn(2, 3, 8, 8)
    trained(model, x)
    policy = space.policy([1, 0])
    apply_policy(model, policy)
    again = quantize(Tied(), policy=policy)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))
        fold = fold_batchnorm(model, (3, 8, 8))
        assert fold.unfolded == {'norm': 'one shares its weight with another layer'}
        config = dict(model=dict(
            type='mmmpq.QuantModel', base_type='Tied', quant=dict(policy=policy)
        ), default_scope='mmengine')  # fmt: skip
        path = save_packed(model, tmp_path / 'a.safetensors', config)
        packed = load_packed(path)
        assert torch.equal(packed(x), model(x))
    assert packed.one.weight is packed.two.weight


@pytest.mark.parametrize(
    ('quant', 'fixed'),
    [
        (dict(fixed={'two': 'W4A8'}), ['one', 'two']),
        (dict(fixed={'one': 'W4A8'}), ['one', 'two']),
        (dict(), []),
    ],
)
def test_what_is_fixed_of_tied_layers(quant, fixed):
    model = quantize(Tied(), candidates=CANDIDATES, **quant)
    found = {
        n: getattr(m, 'precision', None) for n, m in quantized_layers(model).items()
    }
    assert [n for n, p in found.items() if p == (4, 8)] == fixed


def test_tied_layers_refuse_what_parts_them():
    layers = dict.fromkeys(('stem', 'one', 'between', 'two', 'fc'), (8, 8))
    policy = dict(format='mmmpq-policy', version=1, layers=dict(layers, two=(4, 8)))
    with pytest.raises(ValueError, match='8 and 4 bits for the weights of one and two'):
        quantize(Tied(), policy=policy)
    own = dict(mixing='outputs', own_weights=True)
    with pytest.raises(ValueError, match='one weight, as two and one do'):
        quantize(Tied(), candidates=CANDIDATES, **own)


def test_computed_weights_stay_float():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(5)))
    nn.utils.parametrizations.weight_norm(net[1])
    nn.utils.parametrizations.spectral_norm(net[2])
    nn.utils.weight_norm(net[3])
    assert list(quantized_layers(quantize(net, policy='W4A4'))) == ['0', '4']
    assert [p.weights for p in profile(net, (3, 8, 8))] == [9] * 5


@MODELS.register_module(force=True)
class Student(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.stem = nn.Conv2d(3, 4, 3)
        self.mid = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.fc(self.mid(self.stem(inputs).relu()).mean((2, 3)))


@MODELS.register_module(force=True)
class Wrapped(BaseModel):
    """A part, and, with ``teacher``, a frozen copy which is what it predicts with."""

    def __init__(self, part, teacher=False, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.student = MODELS.build(copy.deepcopy(part))
        if teacher:
            self.teacher = MODELS.build(copy.deepcopy(part)).requires_grad_(False)

    def forward(self, *args, **kwargs):
        return getattr(self, 'teacher', self.student)(*args, **kwargs)


def quantized(quant, teacher, inside):
    init_default_scope('mmengine')
    part = dict(type='Student')
    if inside:
        part.update(type='mmmpq.QuantModel', base_type='Student', quant=quant)
        return MODELS.build(dict(type='Wrapped', part=part, teacher=teacher))
    outside = dict(type='mmmpq.QuantModel', base_type='Wrapped', quant=quant)
    return MODELS.build(dict(outside, part=part, teacher=teacher))


@pytest.mark.parametrize('inside', [True, False])
@pytest.mark.parametrize('teacher', [True, False])
def test_wrappers(teacher, inside):
    """One choice, the price of one net, and a policy that fits where it is from."""
    model = quantized(dict(candidates=CANDIDATES, ends='fixed'), teacher, inside)
    problem = Problem(model, [BUDGET])
    alone = Problem(quantize(Student(), candidates=CANDIDATES, ends='fixed'), [BUDGET])
    assert len(problem.space.groups) == 1
    assert problem.tables[0].limit == alone.tables[0].limit
    assert problem.tables[0].max == alone.tables[0].max
    policy = problem.policy([1])
    assert problem.tables[0].of(policy) == alone.tables[0].of(alone.policy([1]))
    own = {'stem': (8, 8), 'mid': (4, 4), 'fc': (8, 8)}
    parts = ['student', 'teacher'][: 1 + teacher]
    wanted = own if inside else {f'{p}.{n}': own[n] for p in parts for n in own}
    assert policy.layers == wanted
    again = quantized(dict(policy=policy), teacher, inside)
    apply_policy(model, policy)
    again.load_state_dict(model.state_dict())
    found = {n: m.precision for n, m in quantized_layers(again).items()}
    assert found == {f'{p}.{n}': own[n] for p in parts for n in own}
    if teacher and not inside:
        assert not any(p.requires_grad for p in again.teacher.parameters())
        names = [n for n, _ in again.teacher.named_parameters()]
        assert names == [n for n, _ in again.student.named_parameters()]


def test_the_path_of_a_copy_is_that_of_what_it_copies():
    model = quantized(
        dict(candidates=CANDIDATES, mixing='sampled', ends='fixed'), True, False
    )
    space = SearchSpace(model)
    space.take([2])
    assert model.teacher.mid.relaxation.choice == 2
    names = [n for n, _ in model.teacher.named_parameters()]
    assert names == [n for n, _ in model.student.named_parameters()]
    assert (
        model.teacher.mid.relaxation.logits is not model.student.mid.relaxation.logits
    )


def test_two_different_parts_are_refused():
    other = quantize(nn.Sequential(nn.Conv2d(3, 3, 1)), policy='W4A4')
    model = nn.ModuleList([quantize(Student(), policy='W4A4'), other])
    with pytest.raises(ValueError, match='2 different parts with a `quant`'):
        SearchSpace(model)


def test_averaged_models_are_copies():
    model = nn.Module()
    model.backbone, model.neck = Student(), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.target = ExponentialMovingAverage(nn.Sequential(model.backbone, model.neck))
    found = copies(model)
    assert found['target.module.0.mid'] == 'backbone.mid'
    assert found['target.module.1.0'] == 'neck.0'


def test_equal_blocks_of_a_list_are_no_copies():
    """As of a ViT whose first stages are frozen."""
    model = nn.Sequential(*(Student() for _ in range(3)))
    model[0].requires_grad_(False)
    assert copies(model) == {}


def test_soft_teacher():
    init_default_scope('mmdet')
    name = 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    cfg = get_config(f'mmdet::soft_teacher/{name}').model
    cfg.detector.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.detector.rpn_head.update(in_channels=16, feat_channels=16)
    cfg.detector.roi_head.bbox_roi_extractor.out_channels = 16
    cfg.detector.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    detector = copy.deepcopy(cfg.detector)
    cfg.update(
        base_type=cfg.type, type='mmmpq.QuantModel', quant=dict(candidates=CANDIDATES)
    )
    model = MODELS.build(cfg)
    space = SearchSpace(model)
    assert all(n.startswith('student.') for g in space.groups for n in g.layers)
    budget = Budget.build(dict(type='BOPs', limit='W4A4', input_shape=(3, 64, 64)))
    (table,) = cost_tables(model, space, [budget])
    assert all(float(v.max()) > 0 for v in table.values)
    alone = profile(MODELS.build(detector), (3, 64, 64))
    size = total_cost(WeightBytes(), profile(model, (3, 64, 64)), {})
    assert size == total_cost(WeightBytes(), alone, {})
