"""Residual blocks that a search may leave out: the candidate (0, 0)."""

import copy
import json
import pickle

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq.costs import Budget, profile
from mmmpq.layers import MixedLayer, Skip, float_mode, quantized_layers
from mmmpq.models import apply_policy, calibrate, quantize
from mmmpq.models import skipping as models_skipping
from mmmpq.policy import SKIP, Policy, Precision
from mmmpq.search import SearchSpace, cost_tables
from mmmpq.visualization import plots
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.theme import LIGHT

CANDIDATES = [(0, 0), (2, 2), (4, 8)]
MIXINGS = ['composite', 'outputs', 'sampled']
IDENTITIES = [f'backbone.layer{b}' for b in ('1.0', '1.1', '2.1', '3.1', '4.1')]


class BasicBlock(nn.Module):
    """As ResNet's: relu(x + conv2(relu(norm(conv1(x)))))."""

    def __init__(self, channels, out=None):
        super().__init__()
        out = out or channels
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.downsample = None if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv2(self.norm(self.conv1(x)).relu())
        return (out + shortcut).relu_()


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.same = BasicBlock(4)
        self.wider = BasicBlock(4, 6)
        self.last = BasicBlock(6)
        self.fc = nn.Linear(6, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        x = self.last(self.wider(self.same(self.stem(x).relu())))
        out = self.fc(x.mean((2, 3)))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def net(**quant):
    quant.setdefault('candidates', CANDIDATES)
    quant.setdefault('ends', 'fixed')
    model = quantize(Net(), **quant)
    calibrate(model, [dict(inputs=list(torch.randn(4, 3, 6, 6)))])
    with torch.no_grad():
        for logits in SearchSpace(model).logits:
            logits.normal_()
    return model.eval()


def image(channels=4):
    return torch.randn(2, channels, 6, 6).relu()


def block_by_hand(block, x, probs):
    """The block whose two layers mix by ``probs``, over the other candidates."""
    layers = []
    for layer, inputs in ((block.conv1, x), (block.conv2, None)):
        if inputs is None:
            inputs = block.norm(layers[0]).relu()
        pairs = list(zip(probs, layer.candidates[1:], strict=True))
        if layer.mixing == 'composite':
            weight = sum(p * layer.w_quantizer(layer.weight, c[0]) for p, c in pairs)
            mixed = sum(p * layer.a_quantizer(inputs, c[1]) for p, c in pairs)
            out = nn.functional.conv2d(mixed, weight, layer.bias, padding=1)
        else:
            out = sum(
                p
                * nn.functional.conv2d(
                    layer.a_quantizer(inputs, c[1]),
                    layer.w_quantizer(layer.weight, c[0]),
                    layer.bias,
                    padding=1,
                )
                for p, c in pairs
            )
        layers.append(out)
    return (layers[1] + x).relu()


# --- values and gradients -------------------------------------------------------------


@pytest.mark.parametrize('mixing', MIXINGS[:2])
def test_the_block_is_mixed_with_its_input(mixing):
    block = net(mixing=mixing).same
    relaxation = block.conv1.relaxation
    logits = relaxation.logits.requires_grad_()
    x = image().requires_grad_()
    leaves = [x, logits, block.conv1.weight, block.conv2.weight]
    out = block(x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    p = torch.softmax(logits, 0)
    wanted = p[0] * x + (1 - p[0]) * block_by_hand(block, x, p[1:] / (1 - p[0]))
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(wanted, leaves, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('choice', range(3))
def test_sampled_block_is_its_input_or_one_path(choice):
    block = net(mixing='sampled').same.train()
    block.conv1.relaxation.choice = choice
    x = image().requires_grad_()
    hot = torch.eye(3)[choice]
    statistics = copy.deepcopy(block.norm.state_dict())
    out = block(x)
    skipped = choice == 0
    wanted = x if skipped else block_by_hand(block, x, hot[1:])
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(statistics['running_mean'], block.norm.running_mean) == skipped
    out.square().sum().backward()
    # DDP would wait for a parameter that has no gradient at all
    params = [p for p in block.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in params)
    assert bool(block.conv1.weight.grad.any()) == (not skipped)
    if skipped:
        torch.testing.assert_close(x.grad, 2 * x.detach())
        out.mul_(2)  # what comes next may work in place
    with torch.no_grad():
        assert (block(x) is x) == skipped


@pytest.mark.parametrize('choice', range(3))
def test_sampled_gradient_of_the_logits_passes_straight_through(choice):
    block = net(mixing='sampled').same
    relaxation = block.conv1.relaxation
    relaxation.choice = choice
    x = image()
    with torch.no_grad():
        wanted = block(x)
    logits = relaxation.logits.requires_grad_()
    out = block(x)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, logits, grad)
    # by hand: the composite at the one-hot h as a free variable; if that is skip, of
    # the most probable other candidate
    for name in ('conv1', 'conv2'):
        getattr(block, name).mixing = 'composite'
    hot = torch.eye(3)[choice].requires_grad_()
    if choice == 0:
        inner = torch.eye(2)[int(logits[1] < logits[2])]
    else:
        inner = hot[1:] / (1 - hot[0])
    out = hot[0] * x + (1 - hot[0]) * block_by_hand(block, x, inner)
    (at_hot,) = torch.autograd.grad(out, hot, grad)
    p = torch.softmax(logits.detach(), 0)
    wanted = p * (at_hot - (p * at_hot).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert found.any()


@pytest.mark.parametrize('mixing', MIXINGS)
@pytest.mark.parametrize('kind', ['Softmax', 'GumbelSoftmax'])
def test_certain_probabilities_are_the_paths(mixing, kind):
    model = net(mixing=mixing, relaxation=dict(type=kind))
    block, x = model.same, image()
    for j in range(3):
        with torch.no_grad():
            block.conv1.relaxation.logits.fill_(-1e4)[j] = 0
        block.conv1.relaxation.logits.requires_grad_()
        wanted = x if j == 0 else block_by_hand(block, x, torch.eye(3)[j, 1:])
        out = block(x)
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(out.sum(), block.conv1.relaxation.logits)
        assert grad.isfinite().all()


def test_own_weights_in_a_block():
    model = net(mixing='outputs', own_weights=True)
    block, x = model.same, image()
    assert list(block.conv1.own) == ['2']  # W2A2's is `weight`, skip needs none
    with torch.no_grad():
        for layer in (block.conv1, block.conv2):
            layer.own['2'].weight.mul_(-1)
            layer.relaxation.logits.fill_(-1e4)[2] = 0
    out = block(x)
    policy = dict.fromkeys(['same.conv1', 'same.conv2'], Precision(4, 8))
    policy |= dict.fromkeys(['last.conv1', 'last.conv2'], SKIP)
    names = {n: Precision(2, 2) for n in quantized_layers(model) if n[:5] == 'wider'}
    policy |= names | dict.fromkeys(['stem', 'fc'], Precision(8, 8))
    apply_policy(model, Policy(policy))
    torch.testing.assert_close(block(x), out, rtol=1e-5, atol=1e-5)


# --- the model around it --------------------------------------------------------------


def test_only_identity_blocks_have_the_candidate_and_it_is_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(
        models_skipping, 'print_log', lambda text, **_: said.append(text)
    )
    space = SearchSpace(net())
    found = {g.name: SKIP in g.candidates for g in space.groups}
    assert found == {'same': True, 'wider': False, 'last': True}
    assert len(said) == 1
    assert said[0].startswith('quant.candidates: W0A0 is left out')
    assert 'wider (a projection as shortcut)' in said[0]
    assert 'same' not in said[0]


def test_the_block_stays_what_it_was():
    plain = Net()
    keys, kind = set(plain.state_dict()), type(plain.same)
    model = quantize(plain, candidates=CANDIDATES, ends='fixed')
    assert type(model.same) is kind
    assert keys <= set(model.state_dict())
    assert isinstance(model.same.forward, Skip)
    assert 'forward' not in vars(model.wider)
    calls = []
    model.same.register_forward_hook(lambda *_: calls.append(1))
    model.same(image())
    assert calls == [1]


@pytest.mark.parametrize(
    'again', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_have_a_choice_of_their_own(again):
    model = net(mixing='composite')
    other = again(model)
    x = image()
    torch.testing.assert_close(other.same(x), model.same(x))
    with torch.no_grad():
        other.same.conv1.relaxation.logits.fill_(-1e4)[0] = 0
    torch.testing.assert_close(other.same(x), x)
    assert not torch.equal(model.same(x), x)


@pytest.mark.parametrize('mixing', MIXINGS)
def test_profile_and_calibration_run_the_block(mixing):
    model = net(mixing=mixing)
    model.same.conv1.relaxation.choice = 0
    plain = {p.name: p.macs for p in profile(Net(), (3, 8, 8))}
    assert {p.name: p.macs for p in profile(model, (3, 8, 8))} == plain
    assert all(m.a_quantizer.calibrated for m in quantized_layers(model).values())
    with float_mode(model):
        x = image()
        block = model.same
        wanted = block.conv2(block.norm(block.conv1(x)).relu()) + x
        torch.testing.assert_close(block(x), wanted.relu())
    space = SearchSpace(model)
    policy = space.policy([0, 0, 0])
    fixed = apply_policy(model, policy)
    assert {p.name: p.macs for p in profile(fixed, (3, 8, 8))} == plain


@pytest.mark.parametrize('kind', ['BOPs', 'WeightBytes', 'ActivationBytes', 'Latency'])
def test_a_skipped_block_costs_nothing(kind, tmp_path):
    model = net()
    space = SearchSpace(model)
    budget = dict(type=kind, input_shape=(3, 8, 8), limit='1 GB')
    if kind == 'BOPs':
        budget['limit'] = 'W8A8'
    if kind == 'Latency':
        rows = latency_rows(profile(model, (3, 8, 8)))
        path = tmp_path / 'table.json'
        path.write_text(json.dumps(rows))
        budget.update(limit='1 s', table=str(path))
    (table,) = cost_tables(model, space, [Budget.build(budget)])
    assert [v[0] == 0 for v in table.values] == [True, False, True]
    assert all((v[1:] > 0).all() for v in table.values)
    cheap = space.policy([0, 0, 0])
    assert table.of(cheap) == pytest.approx(table.constant + float(table.values[1][0]))
    assert cheap.layers['same.conv2'] == cheap.layers['last.conv1'] == SKIP
    p = [torch.full((n,), 1 / n, dtype=torch.float64) for n in space.sizes]
    mean = sum(float(v.mean()) for v in table.values) + table.constant
    assert float(table.expected(p)) == pytest.approx(mean)


def latency_rows(profiles):
    rows = {}
    for layer in profiles:
        shape = {k: v for k, v in layer.shape.items() if k != 'input_sizes'}
        for w, a in [(2, 2), (4, 8), (8, 8), (32, 32)]:
            for size in layer.shape['input_sizes']:
                row = dict(shape, type=layer.type, w_bits=w, a_bits=a, us=1.0)
                row['input_size'] = list(size)
                rows[json.dumps(row, sort_keys=True)] = row
    return list(rows.values())


@pytest.mark.parametrize('mixing', MIXINGS)
def test_the_net_that_was_found_and_the_one_from_its_file(mixing, tmp_path):
    model = net(mixing=mixing)
    space = SearchSpace(model)
    choice = [0, 1, 1]
    for group, j in zip(space.groups, choice, strict=True):
        with torch.no_grad():
            group.relaxation.logits.fill_(-1e4)[j] = 0
        group.relaxation.choice = j
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    policy = space.policy(choice)
    found = apply_policy(copy.deepcopy(model), policy)
    torch.testing.assert_close(found(x), wanted, rtol=1e-5, atol=1e-5)
    inputs = image()
    assert found.same(inputs) is inputs
    assert not any(isinstance(m, MixedLayer) for m in found.modules())
    assert 'forward' not in vars(found.last)
    path = policy.save(tmp_path / 'policy.json')
    assert json.loads(path.read_text())['layers']['same.conv1'] == [0, 0]
    again = quantize(Net(), policy=str(path)).eval()
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(x), found(x))
    for fixed in (found, again):
        # what takes part in no forward would stop DDP
        assert not any(p.requires_grad for p in fixed.same.parameters())
        fixed(x).sum().backward()
        assert all(p.grad is not None for p in fixed.parameters() if p.requires_grad)
        assert all(m.a_quantizer.calibrated for m in quantized_layers(fixed).values())


def test_calibration_of_a_fixed_net_goes_past_its_skipped_block(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmmpq.layers.base.print_log', lambda text, **_: said.append(text)
    )
    policy = 'W4A4'
    model = quantize(Net(), policy=policy, fixed={'same.*': (0, 0)})
    seen = []
    model.wider.conv1.register_forward_hook(lambda m, x, out: seen.append(x[0]))
    inputs = torch.randn(4, 3, 6, 6)
    calibrate(model, [dict(inputs=list(inputs))])
    stem = nn.functional.conv2d(inputs, model.stem.weight, model.stem.bias, padding=1)
    torch.testing.assert_close(seen[0], stem.relu())
    assert not said


def test_a_block_may_be_fixed_as_skipped_beside_a_search():
    model = net(candidates=[(2, 2), (4, 4)], fixed={'last.*': 'W0A0'})
    space = SearchSpace(model)
    assert [g.name for g in space.groups] == ['same', 'wider']
    x = image(6)
    assert model.last(x) is x
    policy = space.policy([0, 1])
    assert policy.layers['last.conv2'] == SKIP
    assert apply_policy(model, policy).last(x) is x


def test_zero_bits_are_drawn():
    space = SearchSpace(net())
    policy = space.policy([0, 0, 0])
    groups = {
        g.name: dict(layers=g.layers, candidates=[list(c) for c in g.candidates])
        for g in space.groups
    }
    share = {g.name: [1 / len(g.candidates)] * len(g.candidates) for g in space.groups}
    record = dict(iter=0, loss=1.0, penalties={}, expected=[], realised=[], probs=share)
    history = SearchHistory(groups, [], [dict(record, bound=[])])
    for figure in (plots.bits, plots.probabilities):
        figure(policy.layers, history, LIGHT).draw_without_rendering()


# --- toolbox models -------------------------------------------------------------------


@pytest.mark.parametrize('mixing', MIXINGS)
def test_resnet_18(small, build, mixing):
    model = build(small('resnet'), candidates=CANDIDATES, mixing=mixing)
    space = SearchSpace(model)
    assert [g.name for g in space.groups if SKIP in g.candidates] == IDENTITIES
    inputs = torch.randn(2, 3, 32, 32)
    for logits in space.logits:
        logits.requires_grad_()
    space.draw(torch.Generator().manual_seed(0))
    loss = model.head.fc(model.extract_feat(inputs)[-1]).logsumexp(1).sum()
    grads = torch.autograd.grad(loss, space.logits)
    assert all(g.isfinite().all() and g.any() for g in grads)
    for logits in space.logits:
        logits.requires_grad_(False)
    policy = space.policy([0] * len(space.groups))
    found = apply_policy(model, policy).eval()
    again = build(small('resnet'), policy=policy).eval()
    again.load_state_dict(found.state_dict())
    x = inputs
    stages = found.backbone
    x = stages.maxpool(stages.relu(stages.norm1(stages.conv1(x))))
    for s in (2, 3, 4):
        x = getattr(stages, f'layer{s}')[0](x)
    for net in (found, again):
        torch.testing.assert_close(net.backbone(inputs)[-1], x)


def test_cifar_resnet_20():
    pytest.importorskip('mmpretrain')
    from mmmpq.models.backbones import CifarResNet

    precisions = [(0, 0), (32, 32)]
    model = quantize(
        CifarResNet(20), candidates=precisions, mixing='sampled', ends='fixed'
    )
    space = SearchSpace(model)
    free = [g.name for g in space.groups if SKIP in g.candidates]
    assert free == [f'layer{s}.{b}' for s in (1, 2, 3) for b in range(3) if b or s == 1]
    for group in space.groups:
        group.relaxation.choice = 0
    inputs = torch.randn(2, 3, 16, 16)
    x = model.relu(model.bn1(model.conv1(inputs)))
    x = model.layer3[0](model.layer2[0](x))
    torch.testing.assert_close(model(inputs)[0], x, rtol=1e-4, atol=1e-5)


def test_detector(small, build):
    model = build(small('retinanet'), candidates=CANDIDATES)
    free = [g.name for g in SearchSpace(model).groups if SKIP in g.candidates]
    assert free == IDENTITIES


def test_hardware_needs_no_entry_for_it(tmp_path):
    path = tmp_path / 'hardware.json'
    path.write_text(json.dumps(dict(name='chip', layers=dict(default=['W4A8']))))
    model = net(hardware=str(path))
    assert model.same.conv1.candidates == (SKIP, (4, 8))
    with pytest.raises(ValueError, match=r'hardware: chip allows none of'):
        net(hardware=str(path), candidates=[(0, 0), (2, 2)])


# --- bad input ------------------------------------------------------------------------


class Odd(nn.Module):
    """A block that does not tell about its shortcut, and one that has none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.block = BasicBlock(3)
        del self.block.downsample
        self.inverted = BasicBlock(3)
        del self.inverted.downsample
        self.inverted.with_res_shortcut = False


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: net(groups='layer'),
            r'quant\.candidates: found W0A0.*no group can be skipped: .*not all of sa',
        ),
        (
            lambda: net(groups=['*.conv?']),
            r'quant\.candidates:.*not one residual block',
        ),
        (
            lambda: quantize(Odd(), candidates=CANDIDATES),
            'block .*does not say that its shortcut.*inverted .*no identity shortcut',
        ),
        (lambda: net(candidates=[(0, 0)]), r'candidates: .*\(0, 0\).*other precision'),
        (lambda: net(candidates=[(0, 4), (4, 4)]), r'candidates\[0\]: found 0 bits'),
        (
            lambda: net(fixed={'wider.*': (0, 0)}),
            r'quant\.fixed: found W0A0.*wider\.conv1.*projection as shortcut',
        ),
        (
            lambda: net(fixed={'same.conv1': (0, 0)}),
            r'quant\.fixed: found.*same\.conv1.*not all of same: same\.conv2',
        ),
        (lambda: net(fixed={'stem': (0, 0)}), r'quant\.fixed: .*not one residual'),
        (
            lambda: quantize(Net(), policy='W0A0'),
            r'quant\.policy: found W0A0.*projection as shortcut',
        ),
        (
            lambda: net(relaxation=dict(type='Softmax', factorised=True)),
            'every pair of the widths',
        ),
        (lambda: net(mixing='composite', own_weights=True), 'own_weights'),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_policy_that_skips_part_of_a_block(tmp_path):
    model = net()
    policy = SearchSpace(model).policy([0, 0, 0])
    policy.layers['same.conv2'] = Precision(2, 2)
    for load in (
        lambda: quantize(Net(), policy=policy.save(tmp_path / 'policy.json')),
        lambda: apply_policy(model, policy),
    ):
        with pytest.raises(ValueError, match=r'policy: .*same\.conv1.*not all of same'):
            load()
    with pytest.raises(ValueError, match='found W0A0 for a layer with the candidates'):
        space = SearchSpace(plain := net(candidates=[(2, 2), (4, 4)]))
        policy = space.policy([0, 0, 0])
        policy.layers.update({'same.conv1': SKIP, 'same.conv2': SKIP})
        apply_policy(plain, policy)
