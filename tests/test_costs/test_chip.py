"""Time and energy on a chip: closed forms, files of chips, searches inside budgets."""

import json
from itertools import product

import pytest
import torch
from torch import nn

import mmmpq
from mmmpq.costs import Budget, ChipEnergy, ChipLatency, profile, total_cost
from mmmpq.costs.budget_text import budget_cfgs
from mmmpq.costs.chip import Chip, chip_names
from mmmpq.costs.chip_cost import compute_cycles, traffic_bits
from mmmpq.policy import FLOAT, SKIP, Precision
from mmmpq.search import SearchSpace, cost_tables, most_probable

# 4 x 8 products of 8 bits a cycle, one step of 4 bits at a time; 16 bits a cycle.
CHIP = dict(
    name='small',
    clock_hz=1e6,
    w_bits=[4, 8],
    a_bits=[2, 4, 8],
    passes=dict(conv=dict(inputs=4, outputs=8, packs=['w'], serial=['a'])),
    memory=dict(bits_per_cycle=16, pj_per_bit=3, output_bits=8),
    pj_per_cycle=7,
    pj_per_operand_bit=dict(w=0.5, a=0.25),
)


@pytest.fixture
def chip(tmp_path):
    """Writes a chip with some keys in place of CHIP's; None leaves a key out."""

    def write(**keys):
        path = tmp_path / 'my_chip.json'
        keys = {k: v for k, v in (CHIP | keys).items() if v is not None}
        path.write_text(json.dumps(keys))
        return path

    return write


def profiled(module, *shape):
    (found,) = profile(module, shape)
    return found


def test_time_and_energy_by_hand(chip):
    conv = profiled(nn.Conv2d(10, 12, 3, padding=1), 10, 6, 5)
    path = chip()
    time, energy = ChipLatency(path), ChipEnergy(path)
    for (w, a), lanes, (w_stored, a_stored) in [
        ((8, 8), 4, (8, 8)),
        ((4, 8), 8, (4, 8)),
        ((3, 3), 8, (4, 4)),
        ((8, 1), 4, (8, 2)),
    ]:
        cycles = 30 * 9 * -(-10 // lanes) * 2 * a_stored
        bits = 10 * 12 * 9 * w_stored + 300 * a_stored + 360 * 8
        precision = Precision(w, a)
        assert time.chip.memory.bits_per_cycle * cycles > bits  # it computes longer
        assert time(conv, precision) == cycles
        pj = cycles * 7 + bits * 3 + conv.macs * (w_stored * 0.5 + a_stored * 0.25)
        assert energy(conv, precision) == pytest.approx(pj * 1e-12)
    assert time(conv, SKIP) == energy(conv, SKIP) == 0
    # A float layer is one of 32 bits: 4 pieces of the weights by 4 of the inputs.
    assert time(conv, FLOAT) == 16 * time(conv, Precision(8, 8))


def test_the_longer_of_computing_and_moving_counts(chip):
    conv, w8 = profiled(nn.Conv2d(8, 8, 1), 8, 4, 4), Precision(8, 8)
    computes = 16 * 2 * 8
    moves = 64 * 8 + 128 * 8 + 128 * 8
    for width in (1, 4, 9, 10, 11, 100):
        memory = dict(bits_per_cycle=width, output_bits=8)
        time = ChipLatency(chip(memory=memory))
        assert time(conv, w8) == max(computes, moves / width)
        assert time.waits(conv, w8) == (moves / width > computes)
        assert time(conv, SKIP) == 0 and not time.waits(conv, SKIP)
    assert ChipLatency(chip(memory=None))(conv, w8) == computes


def test_more_bits_never_take_less(chip):
    layers = [
        profiled(nn.Conv2d(3, 20, 7, 2, 3), 3, 32, 24),
        profiled(nn.Conv2d(20, 20, 3, groups=20), 20, 9, 9),
        profiled(nn.Conv2d(24, 40, 3, groups=4), 24, 9, 9),
        profiled(nn.Linear(100, 30), 100),
        profiled(nn.ConvTranspose2d(8, 6, 2, 2), 8, 5, 5),
    ]
    widths = [*range(1, 9), 32]
    for name in [*chip_names(), chip()]:
        costs = [ChipLatency(name)]
        if costs[0].chip.pj_per_cycle is not None:
            costs.append(ChipEnergy(name))
        for cost, layer, a in product(costs, layers, widths):
            found = [cost(layer, Precision(w, a)) for w in widths]
            assert found == sorted(found) and found[0] > 0
            found = [cost(layer, Precision(a, w)) for w in widths]
            assert found == sorted(found)


def test_lanes_without_channels_idle(chip):
    small = Chip.load(chip())
    w8 = Precision(8, 8)
    dense = compute_cycles(small, profiled(nn.Conv2d(16, 16, 3), 16, 8, 8), w8)
    # As many cycles for a 16th of the products: each group has one of 4 x 8 lanes.
    alone = profiled(nn.Conv2d(16, 16, 3, groups=16), 16, 8, 8)
    assert compute_cycles(small, alone, w8) == dense * 2
    stem = profiled(nn.Conv2d(3, 16, 3), 3, 8, 8)
    assert compute_cycles(small, stem, w8) == dense / 4
    part = CHIP['passes']['conv']
    own = Chip.load(chip(passes=dict(conv=part, depthwise=part | dict(inputs=1))))
    assert compute_cycles(own, alone, w8) == dense / 4
    unfolded = Chip.load(chip(passes=dict(conv=part | dict(unfold=3))))
    assert compute_cycles(unfolded, stem, w8) == 36 * 7 * 2 * 8  # 27 taps on 4 lanes


def test_calls_and_sizes_add_up(chip):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x), self.conv(x[..., ::2, ::2])

    small, w8 = Chip.load(chip()), Precision(8, 8)
    head = profiled(Head(), 4, 8, 8)
    assert compute_cycles(small, head, w8) == (64 + 16) * 9 * 8
    weights = 2 * 4 * 8 * 9 * 8  # read by both calls
    assert traffic_bits(small, head, w8) == weights + 80 * 4 * 8 + 80 * 8 * 8


def test_what_does_not_fit_is_read_again(chip):
    conv, w8 = profiled(nn.Conv2d(8, 16, 1), 8, 8, 8), Precision(8, 8)
    weights, inputs, outputs = 128 * 8, 512 * 8, 1024 * 8

    def traffic(**keys):
        memory = dict(bits_per_cycle=16, output_bits=8) | keys
        return traffic_bits(Chip.load(chip(memory=memory)), conv, w8) - outputs

    assert traffic() == weights + inputs
    half = dict(weight_buffer=weights // 2, input_buffer=inputs // 8)
    assert traffic(**half) == weights + 2 * inputs  # and not 8 weights + inputs
    half['weight_buffer'] = weights // 8
    assert traffic(**half) == 8 * weights + inputs
    tiny = dict(weight_buffer=8, input_buffer=8)
    # 64 sums: blocks of 16 channels at 4 positions or of fewer at more.
    blocks = [
        weights * -(-64 // m) + inputs * -(-16 // (64 // m)) for m in (4, 8, 16, 32)
    ]
    assert min(blocks) <= traffic(**tiny, sums=64) < 1.1 * min(blocks)


WRONG = {
    'unknown key': (dict(clock=1e6), "unknown key 'clock'; near names: clock_hz"),
    'missing key': (dict(clock_hz=None), "missing .*'clock_hz'"),
    'negative': (dict(clock_hz=-1.0), 'clock_hz: found -1.0; needed is a number above'),
    'text': (dict(clock_hz='fast'), "clock_hz: found 'fast'; accepted is a finite"),
    'order': (dict(w_bits=[8, 4]), r'w_bits: found \[8, 4\]; needed are ascending'),
    'no pass': (dict(passes=None), 'needed is one of passes and macs_per_cycle'),
    'no conv': (dict(passes=dict(linear={})), "passes: 'conv' is missing"),
    'pass': (
        dict(passes=dict(conv=dict(inputs=0, outputs=1))),
        'passes.conv: inputs: found 0',
    ),
    'operand': (
        dict(passes=dict(conv=dict(inputs=1, outputs=1, serial=['x']))),
        r"passes.conv: serial: found \['x'\]; accepted are \"w\" and \"a\"",
    ),
    'memory': (dict(memory=dict(width=3)), "memory: .*unknown key 'width'"),
    'rate': (
        dict(passes=None, macs_per_cycle=dict(W8A8=1)),
        "macs_per_cycle: 'W4A2' is missing",
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_chip_is_one_sentence(chip, name):
    keys, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        Chip.load(chip(**keys))
    said = str(error.value)
    assert 'my_chip.json' in said and '\n' not in said


def test_a_chip_that_there_is_not(tmp_path, chip):
    with pytest.raises(ValueError, match="'bitfusion'; accepted are bismo, bit_fusion"):
        Chip.load('bitfusion')
    with pytest.raises(FileNotFoundError, match='absent'):
        Chip.load(tmp_path / 'absent.json')
    (tmp_path / 'folder.json').mkdir()
    with pytest.raises(FileNotFoundError, match='but a folder of this name'):
        Chip.load(tmp_path / 'folder.json')
    with pytest.raises(
        ValueError, match=r'ChipEnergy\.chip: found 5; accepted is a te'
    ):
        Budget.build(dict(type='ChipEnergy', limit='5 mJ', chip=5))
    with pytest.raises(KeyError, match="unknown key 'chipp'; near names: chip"):
        Budget.build(dict(type='ChipEnergy', limit='5 mJ', chipp='bit_fusion'))
    with pytest.raises(ValueError, match="type 'bitfusion'; near names: bit_fusion"):
        budget_cfgs('bitfusion: 5 ms', 'BOPs', {})
    with pytest.raises(ValueError, match=r"loom: .*found '1\.2\.3'; accepted is a num"):
        budget_cfgs('loom: 1.2.3*W4A4', 'BOPs', {})
    with pytest.raises(ValueError, match=r'ChipLatency\.chip is missing; accepted'):
        Budget.build(dict(type='ChipLatency', limit='5 ms'))
    with pytest.raises(ValueError, match=r"'ne16', whose energy is not known .* mpic"):
        ChipEnergy('ne16')


@pytest.mark.parametrize('name', chip_names())
def test_every_number_of_a_chip_has_a_source(name):
    chip = Chip.load(name)
    assert chip.name and chip.paper
    numbers = {'clock_hz', 'w_bits', 'a_bits', 'passes', 'macs_per_cycle', 'memory'}
    numbers |= {'pj_per_cycle', 'pj_per_operand_bit'}
    for key in numbers:
        value = getattr(chip, key)
        if value is None or key in chip.sources:
            continue
        parts = (
            value if key == 'passes' else {k: v for k, v in vars(value).items() if v}
        )
        assert {f'{key}.{part}' for part in parts} <= set(chip.sources), key


@pytest.mark.parametrize(
    'text, cfg',
    [
        ('bit_fusion: 5 ms', dict(type='ChipLatency', limit='5 ms', chip='bit_fusion')),
        ('loom:W4A4', dict(type='ChipLatency', limit='W4A4', chip='loom')),
        ('a/b.json: 3 µJ', dict(type='ChipEnergy', limit='3 µJ', chip='a/b.json')),
        ('2 mJ', dict(type='ChipEnergy', limit='2 mJ')),
        ('ChipLatency: W3A3', dict(type='ChipLatency', limit='W3A3', chip='stripes')),
        ('W3A3', dict(type='BOPs', limit='W3A3')),
    ],
)
def test_budgets_as_texts(text, cfg):
    common = (
        dict(chip='stripes') if 'chip' not in cfg or cfg['chip'] == 'stripes' else {}
    )
    if cfg['type'] == 'ChipEnergy' and common:
        cfg = cfg | common
    assert budget_cfgs(text, 'BOPs', common) == [cfg]


def supernet():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()
    )
    net.append(nn.Linear(12 * 16, 4))
    return mmmpq.quantize(net, ['W2A2', 'W4A8', 'W8A4', 'W8A8'], groups='layer')


@pytest.mark.parametrize('cost, text', [(ChipLatency, 'ms'), (ChipEnergy, 'uJ')])
def test_the_choice_inside_a_budget_is_the_best_of_all(chip, cost, text):
    path = chip()
    net = supernet()
    space = SearchSpace(net)
    layers = profile(net, (3, 8, 8))
    spends = cost(path)
    options = [group.candidates for group in space.groups]
    torch.manual_seed(1)
    for group in space.groups:
        group.relaxation.logits.data = torch.randn(len(group.candidates))
    logs = [torch.log_softmax(g.relaxation.logits.detach(), 0) for g in space.groups]
    names = [[*group.layers] for group in space.groups]

    def total(choice):
        chosen = {
            name: options[i][j] for i, j in enumerate(choice) for name in names[i]
        }
        return total_cost(spends, layers, chosen)

    every = [*product(*(range(len(o)) for o in options))]
    totals = sorted(map(total, every))
    bound = totals[len(totals) // 2]
    limit = f'{bound / spends.units[text]!r} {text}'
    cfg = dict(type=cost.__name__, chip=str(path), limit=limit, input_shape=(3, 8, 8))
    tables = cost_tables(net, space, [Budget.build(cfg)])
    choice = most_probable(space, tables)
    inside = [c for c in every if total(c) <= bound * (1 + 1e-9)]

    def score(choice):
        return sum(float(log[j]) for log, j in zip(logs, choice, strict=True))

    assert total(choice) <= bound * (1 + 1e-9)
    assert score(choice) == pytest.approx(max(map(score, inside)))
