"""Chips against numbers of their publications; beside each where it was read.

Read in a simulator or in an abstract, never measured here; what is but remembered is
in no test.
"""

from dataclasses import replace
from statistics import geometric_mean

import pytest
from torch import nn

from mmmpq.costs import ChipEnergy, ChipLatency, profile
from mmmpq.costs.chip import Chip
from mmmpq.costs.chip_cost import compute_cycles, traffic_bits
from mmmpq.policy import Precision

W8A8, W4A4 = Precision(8, 8), Precision(4, 4)


def layer(cin, cout, kernel, side, stride=1, batch=1, padding=None, groups=1):
    """The profile of a conv on ``batch`` maps of that side, or of a linear layer."""
    if side is None:
        (found,) = profile(nn.Linear(cin, cout), (cin,))
    else:
        padding = kernel // 2 if padding is None else padding
        conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups)
        (found,) = profile(conv, (cin, side, side))
    sizes = dict.fromkeys(found.shape['input_sizes'], batch)
    shape = found.shape | dict(input_sizes=sizes)
    counts = dict(macs=found.macs * batch, activations=found.activations * batch)
    return replace(found, shape=shape, **counts)


def peak(chip, w, a, **shape):
    """MACs a cycle of a layer that leaves nothing idle."""
    shape = dict(cin=4096, cout=4096, kernel=1, side=96) | shape
    found = layer(**shape)
    return found.macs / compute_cycles(Chip.load(chip), found, Precision(w, a))


# Read in the results of Bit Fusion's simulator, results/bitfusion-eyeriss-sim-sweep.csv
# of github.com/hsharma35/bitfusion: batches of 16; cycles that compute, all cycles,
# bits read from and written to DRAM. The nets are those of its benchmarks.py (WRPN).
RESNET_18 = [
    ((3, 128, 7, 224, 2), W8A8, 8028160, 9793537, 1058275328 + 822083584),
    ((128, 128, 1, 56), W4A4, 401408, 2274988, 231276544 + 205520896),
    ((128, 128, 3, 56), W4A4, 3612672, 3613708, 437321728 + 205520896),
    ((128, 128, 1, 56), W4A4, 401408, 2274988, 231276544 + 205520896),
    ((128, 128, 3, 56), W4A4, 3612672, 3613708, 437321728 + 205520896),
    ((128, 256, 1, 56, 2), W4A4, 200704, 1104555, 109314048 + 102760448),
    ((256, 256, 3, 28), W4A4, 3612672, 3613708, 439091200 + 205520896),
    ((256, 256, 1, 28), W4A4, 401408, 1138689, 115867648 + 102760448),
    ((256, 256, 3, 28), W4A4, 3612672, 3613708, 439091200 + 205520896),
    ((256, 512, 1, 28, 2), W4A4, 200704, 571393, 58327040 + 51380224),
    ((512, 512, 3, 14), W4A4, 3612672, 4330838, 625999872 + 205520896),
    ((512, 512, 1, 14), W4A4, 401408, 674476, 78118912 + 51380224),
    ((512, 512, 3, 14), W4A4, 3612672, 4330838, 625999872 + 205520896),
    ((512, 1024, 1, 14, 2), W4A4, 200704, 345431, 40632320 + 25690112),
    ((1024, 1024, 3, 7), W4A4, 3612672, 3614180, 413138944 + 205520896),
    ((1024, 1024, 1, 7), W4A4, 401408, 557057, 81264640 + 25690112),
    ((1024, 1024, 3, 7), W4A4, 3612672, 3614180, 413138944 + 205520896),
]
LINEAR = [  # AlexNet fc1, fc2 and fc3, the RNN
    ((18432, 8192), W4A4, 1179648, 3545090),
    ((8192, 8192), W4A4, 524288, 1575596),
    ((8192, 1000), W8A8, 262144, 398679),
    ((4096, 4096), W4A4, 131072, 394583),
]


@pytest.mark.parametrize('row', RESNET_18 + LINEAR, ids=str)
def test_bit_fusion_computes_as_long_as_in_its_simulator(row):
    shape, precision, computes, *_ = row
    shape = shape if len(shape) > 2 else (*shape, 1, None)
    found = compute_cycles(Chip.load('bit_fusion'), layer(*shape, batch=16), precision)
    assert found == computes


# The other nets of its benchmarks.py, with the bits of all layers but for some first.
W2A2, W1A1 = Precision(2, 2), Precision(1, 1)
NETS = {
    'AlexNet': (
        W4A4,
        2 * [(3, 96, 11, 227, 4, W8A8), (96, 256, 5, 28), (512, 384, 3, 14)]
        + 2 * [(384, 384, 3, 14), (384, 256, 3, 14)]
        + [(18432, 8192), (8192, 8192), (8192, 1000, W8A8)],
    ),
    'SVHN': (
        W1A1,
        [(3, 64, 3, 32, Precision(1, 8)), (64, 64, 3, 32), (64, 128, 3, 16)]
        + [(128, 128, 3, 16), (128, 256, 3, 8), (256, 256, 3, 8)]
        + [(4096, 1024), (1024, 1024), (1024, 10)],
    ),
    'CIFAR10': (
        W2A2,
        [(3, 128, 3, 32, W8A8), (128, 128, 3, 32), (128, 256, 3, 16)]
        + [(256, 256, 3, 16), (256, 512, 3, 8), (512, 512, 3, 8)]
        + [(8192, 1024), (1024, 1024), (1024, 10)],
    ),
    'LeNet-5': (W2A2, [(1, 32, 5, 32), (32, 64, 5, 16), (4096, 512), (512, 10)]),
    'VGG-7': (
        W2A2,
        2 * [(3, 128, 3, 32), (128, 256, 3, 16), (256, 512, 3, 8)] + [(8192, 1024)],
    ),
    'RESNET-18': (W4A4, [(*shape, precision) for shape, precision, *_ in RESNET_18]),
    'RNN': (W4A4, [(4096, 4096)]),
    'LSTM': (W4A4, [(3600, 3600)]),
}
# Read in bitfusion-generate-graphs.ipynb: ms of an image on Bit Fusion and on Eyeriss.
TIMES = {
    'AlexNet': (4.708311375, 8.785792),
    'SVHN': (0.164690375, 1.412096),
    'CIFAR10': (0.411713, 5.519232),
    'LeNet-5': (0.051294, 0.139712),
    'VGG-7': (0.352811375, 2.703232),
    'RESNET-18': (6.13499775, 11.935744),
    'RNN': (0.049322875, 0.131072),
    'LSTM': (0.042146875, 0.1026),
}


def milliseconds(net):
    """Of an image in a batch of 16, on Bit Fusion."""
    usual, rows = NETS[net]
    cost, total = ChipLatency('bit_fusion'), 0.0
    for *shape, last in rows:
        own = isinstance(last, Precision)
        shape = shape if own else [*shape, last]
        shape = shape if len(shape) > 2 else [*shape, 1, None]
        padding = 0 if shape[2] == 11 else None
        found = layer(*shape, batch=16, padding=padding)
        total += cost(found, last if own else usual)
    return total / 16 / 1e3


@pytest.mark.parametrize('net', NETS)
def test_bit_fusion_of_a_net_takes_as_long_as_in_its_simulator(net):
    assert milliseconds(net) == pytest.approx(TIMES[net][0], rel=0.15)


def test_bit_fusion_is_as_much_faster_than_eyeriss_as_published():
    """Read in the abstract: 3.9 times, over these eight nets; geometric mean."""
    ratios = [eyeriss / milliseconds(net) for net, (_, eyeriss) in TIMES.items()]
    assert geometric_mean(ratios) == pytest.approx(3.9, rel=0.1)


def test_bit_fusion_waits_for_weights_of_linear_layers():
    cost = ChipLatency('bit_fusion')
    for shape, precision, _, cycles in LINEAR:
        us = cost(layer(*shape, 1, None, batch=16), precision)
        assert us == pytest.approx(cycles / 500, rel=0.06)


def test_bit_fusion_moves_the_bits_and_spends_the_energy_of_its_simulator():
    """Of the 1x1 layers without stride: where no order of loops is better."""
    chip, cost, tried = Chip.load('bit_fusion'), ChipEnergy('bit_fusion'), 0
    for shape, precision, computes, _, moved in RESNET_18:
        if shape[2] > 1 or len(shape) > 4:  # kernel, stride
            continue
        tried += 1
        found = layer(*shape, batch=16)
        assert traffic_bits(chip, found, precision) == pytest.approx(moved, rel=1e-3)
        # Stats.get_energy: core, operands out of buffers, DRAM; the energy of filling
        # the buffers, which it counts too, is left out here.
        theirs = computes * 235.104 + found.macs * 4 * (0.021 + 0.059) + moved * 15
        assert cost(found, precision) == pytest.approx(theirs * 1e-12, rel=1e-3)
    assert tried == 5


def test_bit_fusion_fuses_16_bricks():
    """Read in act-lab.org/artifacts/bitfusion: 16 fused units of 2 bits out of one of 8
    by 8, four of 8 by 2; powers of two between."""
    eight = peak('bit_fusion', 8, 8)
    assert eight == 16 * 32
    ratios = {(2, 2): 16, (2, 8): 4, (8, 2): 4, (4, 4): 4, (4, 2): 8, (3, 4): 4}
    for (w, a), times in ratios.items():
        assert peak('bit_fusion', w, a) == times * eight


@pytest.mark.parametrize('a', range(2, 9))
def test_stripes_follows_the_bits_of_activations(a):
    """Read in the abstract: time is almost proportional to their number; that of linear
    layers is not. 4096 products of 16 bits a cycle: examples/Stripes of DNNsim."""
    assert peak('stripes', 8, a) == pytest.approx(4096 * 16 / a)
    assert peak('stripes', 3, a) == peak('stripes', 8, a)
    assert peak('stripes', 8, a, side=None) == 4096


@pytest.mark.parametrize('w, a', [(2, 2), (2, 8), (3, 5), (8, 8)])
def test_loom_follows_the_bits_of_both(w, a):
    """Read in the abstract: as many products as 128 of 16 by 16 bits; of linear layers
    the weights' bits alone count."""
    assert peak('loom', w, a) == pytest.approx(128 * 256 / (w * a))
    assert peak('loom', w, a, side=None) == pytest.approx(128 * 16 / w)


def test_bismo_peaks():
    """Read in the abstract and in doc/platforms.md: 6.5 TOPS of 1 by 1 bit."""
    tops = 2 * peak('bismo', 1, 1) * Chip.load('bismo').clock_hz / 1e12
    assert tops == pytest.approx(6.5, rel=0.01)
    assert peak('bismo', 2, 4) == pytest.approx(peak('bismo', 1, 1) / 8)


def test_unpu_peaks():
    """Read in the abstract: 345.6 and 7372 GOPS of 16- and 1-bit weights, 3.08 and 50.6
    TOPS/W. Its energy a cycle is that of 16 bits."""
    chip = Chip.load('unpu')
    gops, per_watt = {}, {}
    for w in (16, 1):
        rate = chip.macs_per_cycle[f'W{w}A16']
        gops[w] = 2 * rate * chip.clock_hz / 1e9
        per_watt[w] = 2 * rate / chip.pj_per_cycle
    assert gops == {16: pytest.approx(345.6), 1: pytest.approx(7372, rel=1e-3)}
    assert per_watt[16] == pytest.approx(3.08, rel=1e-3)
    # With one energy for every cycle: 30 % too much at 1 bit.
    assert per_watt[1] == pytest.approx(1.3 * 50.6, rel=0.01)


# Computed by a performance model of NE16, plinio/cost/ne16_latency.py of
# github.com/eml-eda/plinio: layer, bits of the weights, cycles.
NE16 = [
    (dict(cin=64, cout=64, kernel=3, side=56), 8, 908276),
    (dict(cin=64, cout=64, kernel=3, side=56), 2, 353780),
    (dict(cin=96, cout=128, kernel=3, side=7), 4, 39312),
    (dict(cin=128, cout=256, kernel=1, side=14), 8, 114800),
    (dict(cin=128, cout=256, kernel=1, side=14), 2, 114800),
    (dict(cin=64, cout=64, kernel=3, side=28, groups=64), 8, 90800),
    (dict(cin=64, cout=64, kernel=3, side=28, groups=64), 2, 52400),
    (dict(cin=256, cout=32, kernel=1, side=None), 8, 1094),
]


@pytest.mark.parametrize('shape, bits, cycles', NE16, ids=str)
def test_ne16_takes_as_long_as_its_performance_model(shape, bits, cycles):
    found = compute_cycles(Chip.load('ne16'), layer(**shape), Precision(bits, 8))
    assert found == cycles


def test_mpic_is_as_fast_as_its_table():
    """Read in plinio/cost/mpic_latency.py: MACs a cycle."""
    assert peak('mpic', 2, 2) == pytest.approx(6.5)
    assert peak('mpic', 8, 8) == pytest.approx(2.1)
    assert peak('mpic', 3, 8) == pytest.approx(2.3)  # as 4 bits
