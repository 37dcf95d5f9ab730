import pytest

from mmmpq.costs import ActivationBytes, BOPs, WeightBytes, total_cost
from mmmpq.policy import FLOAT, Precision


def test_formulas(layer):
    conv = layer(macs=1000, weights=9, activations=64)
    precision = Precision(3, 4)
    assert BOPs()(conv, precision) == 12_000
    assert WeightBytes()(conv, precision) == 27 / 8
    assert ActivationBytes()(conv, precision) == 32
    assert BOPs()(conv, FLOAT) == 1_024_000


def test_total_counts_absent_layers_as_float(layer):
    layers = [layer('a', macs=10), layer('b', macs=5)]
    total = total_cost(BOPs(), layers, {'a': Precision(2, 2)})
    assert total == 10 * 4 + 5 * 1024
    assert total_cost(BOPs(), layers, {}) == 15 * 1024


@pytest.mark.parametrize('bits, ratio', [(4, 64), (3, 1024 / 9), (2, 256)])
def test_compression_of_uniform_precisions(layer, bits, ratio):
    layers = [layer('a', macs=7), layer('b', macs=11)]
    uniform = {p.name: Precision(bits, bits) for p in layers}
    found = total_cost(BOPs(), layers, {}) / total_cost(BOPs(), layers, uniform)
    assert found == pytest.approx(ratio)
