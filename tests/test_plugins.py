"""Parts of somebody else's, one file each: searched, reported, exported."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from torch.nn import functional as F

import mmmpq
from mmmpq.cli import main
from mmmpq.costs import LayerProfile
from mmmpq.layers import MixedConv2d
from mmmpq.policy import Policy, Precision, parse_candidates
from mmmpq.quantizers import Quantizer
from mmmpq.registry import COSTS, QUANTIZERS, RELAXATIONS, build

# Runners that start in the same second share a name, and so their logger.
pytestmark = pytest.mark.filterwarnings('ignore:.*has been created:UserWarning')

PLUGINS = Path(__file__).parent / 'plugins'
GRID = [(w, a) for w in (2, 4, 8) for a in (2, 4, 8)]
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmmpq', {plugin!r}], allow_failed_imports=False)
data_preprocessor = dict(mean=[127] * 3, std=[64] * 3, num_classes=2)
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier',
    quant=dict({quant!r}, ends='fixed'),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
visualizer = dict(type='UniversalVisualizer')
randomness = dict(seed=0)
custom_hooks = {hooks!r}
"""
QUANT = dict(candidates=GRID, groups='layer')
BUDGET = dict(type='BOPs', limit='W4A4', input_shape=(3, 32, 32))
# plugin -> keys of quant, the budget
USES = {
    'energy': (dict(), dict(BUDGET, type='Energy', limit='60 nJ')),
    'jensen': (dict(mixing='jensen'), BUDGET),
    'fracbits': (dict(relaxation=dict(type='FracBits')), BUDGET),
    'power_of_two': (dict(quantizer=dict(type='PowerOfTwoQuantizer')), BUDGET),
}


@pytest.fixture(scope='module', autouse=True)
def plugins():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLUGINS))
        for name in USES:
            __import__(name)
        yield


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for name in ('a', 'b'):
        (folder / name).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f'{i}.png'), pixels)
    return str(folder)


def written(path, plugin, pictures, quant, hooks=()):
    path.write_text(
        CONFIG.format(plugin=plugin, pictures=pictures, quant=quant, hooks=[*hooks])
    )
    return str(path)


@pytest.mark.parametrize('plugin', USES)
def test_one_file_is_searched_reported_and_exported(
    plugin, pictures, tmp_path, no_report
):
    more, budget = USES[plugin]
    hook = dict(
        type='mmmpq.SearchHook',
        budgets=[budget],
        penalties=[dict(type='BarrierPenalty', mu=0.01)],
        optimizer=dict(type='Adam', lr=0.1),
        measure=4,  # upgrades are told from noise, and the budget is spent
    )
    config = written(tmp_path / 'search.py', plugin, pictures, QUANT | more, [hook])
    folder = tmp_path / 'search'
    main(['train', config, '--work-dir', str(folder)])
    policy = Policy.load(folder / 'policy.json')
    (spent,) = policy.meta['budgets']
    assert 0.9 * spent['limit'] < spent['cost'] <= spent['limit']
    assert spent['type'] == budget['type']

    main(['report', str(folder), '--out-dir', str(tmp_path / 'report')])
    page = (tmp_path / 'report' / 'index.html').read_text()
    assert f'{budget["type"]} budget' in page

    fixed = dict(policy=str(folder / 'policy.json'))
    config = written(tmp_path / 'fixed.py', plugin, pictures, fixed)
    checkpoint, files = str(folder / 'searched.pth'), tmp_path / 'net.safetensors'
    main(
        ['export', config, checkpoint, '--format', 'packed', 'onnx', '--fold']
        + ['--out', str(files), '--input-shape', '3', '32', '32']
    )
    init_default_scope('mmpretrain')
    net = mmmpq.load_packed(files)
    kinds = {type(m).__name__ for m in net.modules() if isinstance(m, Quantizer)}
    assert ('PowerOfTwoQuantizer' in kinds) == (plugin == 'power_of_two')
    sizes = json.loads((tmp_path / 'sizes.json').read_text())
    assert sizes and list(tmp_path.glob('*.onnx'))


def test_energy_of_a_layer_by_hand():
    energy = build(COSTS, dict(type='Energy'))
    layer = LayerProfile('conv', 'Conv2d', 10**9, 1, 1, 1, {})
    assert energy(layer, Precision(8, 8)) == pytest.approx(0.3e-3)
    assert energy(layer, Precision(2, 4)) == pytest.approx(0.125e-3)
    assert energy(layer, Precision(0, 0)) == 0
    with pytest.raises(ValueError, match='units pJ, nJ, uJ, mJ, J'):
        mmmpq.costs.Budget.build(dict(type='Energy', limit='3 Wh'))


def fracbits(candidates=GRID):
    cfg = dict(type='FracBits')
    return build(RELAXATIONS, cfg, candidates=parse_candidates(candidates))


def test_fracbits_interpolate_two_neighbouring_widths():
    relaxation = fracbits()
    relaxation.logits.data = torch.tensor([-1.0, -4.5])  # λ = 7 and 3.5
    probs = {tuple(c): float(p) for c, p in zip(GRID, relaxation.probs(), strict=True)}
    assert probs[4, 2] == 0.25 * 0.25 and probs[8, 4] == 0.75 * 0.75
    assert sum(p > 0 for p in probs.values()) == 4 and sum(probs.values()) == 1
    widths = torch.tensor(GRID, dtype=torch.float32)
    expected = (relaxation.probs()[:, None] * widths).sum(0)
    torch.testing.assert_close(expected, torch.tensor([7.0, 3.5]))
    layer = MixedConv2d(2, 3, 1, candidates=GRID, relaxation=relaxation)
    x = torch.randn(1, 2, 4, 4)
    found, w = layer(x), layer.weight
    weight = 0.25 * layer.w_quantizer(w, 4) + 0.75 * layer.w_quantizer(w, 8)
    x = 0.25 * layer.a_quantizer(x, 2) + 0.75 * layer.a_quantizer(x, 4)
    torch.testing.assert_close(found, F.conv2d(x, weight, layer.bias))


def test_fracbits_learn_from_both_ends_of_their_range():
    relaxation = fracbits()
    bits = torch.tensor([w * a for w, a in GRID], dtype=torch.float32)
    for theta, wanted in ([0.0, 0.0], 64.0), ([-9.0, 3.0], 16.0), ([-6.0, -3.0], 10.0):
        relaxation.logits.data = torch.tensor(theta)
        logits = relaxation.logits.requires_grad_()
        cost = relaxation.probs() @ bits
        assert float(cost.detach()) == wanted  # λ_w λ_a
        (grad,) = torch.autograd.grad(cost, logits)
        w, a = (max(2.0, min(8.0, 8.0 + t)) for t in theta)
        torch.testing.assert_close(grad, torch.tensor([a, w]))
    relaxation.draw(torch.Generator())
    assert relaxation.logits.tolist() == [-6.0, -3.0]
    torch.testing.assert_close(relaxation.tilt(bits), torch.tensor([14 / 3, 14 / 3]))


def test_fracbits_need_a_grid():
    with pytest.raises(ValueError, match='FracBits: needs every pair of the widths'):
        fracbits([(2, 2), (4, 4)])


def test_steps_are_powers_of_two_and_their_thresholds_learn():
    made = build(
        QUANTIZERS, dict(type='PowerOfTwoQuantizer'), bits=(3, 8), target='weight'
    )
    x = torch.randn(400)
    made.calibrate(x)
    steps = made.scales(x, (3, 8))
    assert torch.equal(steps.log2(), steps.log2().round())
    assert steps.tolist() == [1.0, 1 / 32]  # 3 σ is next to 4
    out = made(x, 3)
    levels = (out / steps[0]).unique()
    assert torch.equal(levels, levels.round())
    assert levels.min() >= -4 and levels.max() <= 3
    out.square().sum().backward()
    assert made.threshold.grad[0] != 0 and made.threshold.grad[1] == 0


def test_the_jensen_gap_is_the_one_of_its_definition():
    """ΔG over pairs of widths, by finite differences on the simplex; float64."""
    torch.manual_seed(0)
    size = dict(candidates=[(w, w) for w in (2, 3, 8)], padding=1)
    layer = MixedConv2d(2, 3, 3, mixing='jensen', **size).double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    layer.calibrate([x])
    relaxation, bits = layer.relaxation, layer.relaxation.w_bits
    relaxation.logits.data = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    relaxation.learning = True
    relaxation.logits.requires_grad_()
    slopes = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    def gradient(mixing):
        layer.mixing = mixing
        (grad,) = torch.autograd.grad((layer(x) * slopes).mean(), relaxation.logits)
        return grad

    added = gradient('jensen') - gradient('composite')
    p = relaxation.probs().detach()
    weights = torch.stack([layer.w_quantizer(layer.weight, b) for b in bits]).detach()
    inputs = torch.stack([layer.a_quantizer(x, b) for b in bits]).detach()
    t = torch.einsum('j,j...->...', p, weights).requires_grad_()
    u = torch.einsum('j,j...->...', p, inputs).requires_grad_()
    out = F.conv2d(u, t, layer.bias, padding=1)
    grads = torch.autograd.grad((out * slopes).mean(), (t, u))
    curvatures = [4 * g.square() for g in grads]

    def gap(theta):
        p = theta.softmax(0)
        return 0.5 * sum(
            sum(
                p[j] * (h * (q[j] - torch.einsum('j,j...->...', p, q)).square()).sum()
                for j in range(3)
            )
            for h, q in zip(curvatures, (weights, inputs), strict=True)
        )

    theta, step = relaxation.logits.detach(), 1e-6 * torch.eye(3, dtype=torch.float64)
    wanted = [(gap(theta + s) - gap(theta - s)) / 2e-6 for s in step]
    torch.testing.assert_close(added, torch.stack(wanted), rtol=1e-6, atol=1e-12)
    assert added.abs().max() > 1e-9
