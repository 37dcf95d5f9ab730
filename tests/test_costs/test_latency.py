import json
from dataclasses import replace
from pathlib import Path

import pytest
import torchvision

from mmmpq.costs import Latency, profile, total_cost
from mmmpq.costs.feeds import Feed
from mmmpq.policy import FLOAT, SKIP, Precision

EXAMPLE = Path(__file__).parents[2] / 'configs/_base_/latency_example.json'
ENTRY = dict(
    type='Conv2d',
    in_channels=1,
    out_channels=1,
    kernel_size=[3, 3],
    stride=[1, 1],
    groups=1,
    input_size=[8, 8],
    w_bits=4,
    a_bits=4,
    us=12.5,
)


@pytest.fixture
def table(tmp_path):
    def write(*entries):
        path = tmp_path / 'table.json'
        path.write_text(json.dumps(entries))
        return path

    return write


def test_sums_over_calls_and_sizes(table, layer):
    cost = Latency(table(ENTRY, dict(ENTRY, input_size=[4, 4], us=3)))
    conv = layer(size=(8, 8), calls=5)
    assert cost(conv, Precision(4, 4)) == 5 * 12.5
    conv.shape['input_sizes'][(4, 4)] = 2
    assert cost(conv, Precision(4, 4)) == 5 * 12.5 + 2 * 3


def test_a_skipped_layer_costs_nothing(table, layer):
    assert Latency(table(ENTRY))(layer('conv'), SKIP) == 0


PLACE = {k: v for k, v in ENTRY.items() if k not in ('w_bits', 'a_bits', 'us')}
PAIR = dict(first=PLACE, second=PLACE, summed=False, bits=[[1, 4], [1, 8]], us=-2.5)


def test_two_layers_in_a_row(table, tmp_path, layer):
    small = dict(PLACE, input_size=[4, 4])
    summed = dict(PAIR, summed=True, us=-1)
    rows = [
        PAIR,
        summed,
        dict(PAIR, bits=[[5, 32], [1, 8]], us=4),
        dict(PAIR, second=small),
    ]
    path = tmp_path / 'pairs.json'
    path.write_text(json.dumps(dict(entries=[ENTRY], pairs=rows)))
    cost, conv = Latency(path), layer(size=(8, 8))
    assert cost.pairwise and not Latency(table(ENTRY)).pairwise
    feed = Feed('a', 'b', (8, 8), (8, 8), False, 3.0)
    for first, second, us in (
        ('W4A4', 'W8A8', 3 * -2.5),
        ('W4A8', 'W2A2', 3 * 4),
        ('W32A32', 'W8A8', 3 * 4),
        ('W2A2', 'W8A16', 0),
        (SKIP, 'W2A2', 0),
    ):
        precisions = Precision.parse(first, ''), Precision.parse(second, '')
        assert cost.between(feed, conv, conv, *precisions) == us
    of_sum = replace(feed, summed=True)
    assert cost.between(of_sum, conv, conv, Precision(2, 2), Precision(2, 2)) == -3
    other = Feed(
        'a', 'b', (8, 8), (16, 16), False, 1.0
    )  # of which the table has nothing
    assert cost.between(other, conv, conv, Precision(2, 2), Precision(2, 2)) == 0
    at_4 = dict.fromkeys('ab', Precision(4, 4))
    layers = [layer('a', size=(8, 8), calls=2), layer('b', size=(8, 8), calls=3)]
    assert total_cost(cost, layers, at_4, [feed]) == 5 * 12.5 - 3 * 2.5


@pytest.mark.parametrize(
    'pair, message',
    [
        (dict(PAIR, bits=[[0, 8], [1, 8]]), r'pair 0 has bits=\[\[0, 8\]'),
        (dict(PAIR, bits=[1, 8]), r'two ranges of widths such as'),
        (dict(PAIR, bits=[[8, 1], [1, 8]]), 'bits='),
        (dict(PAIR, summed=1), 'summed=1; needed is true or false'),
        (dict(PAIR, us='fast'), "us='fast'; needed is a number"),
        (dict(PAIR, us=float('nan')), 'NaN|nan'),
        (dict(PAIR, second=ENTRY), "second=.*'us'.*needed are"),
        (dict(PAIR, first=dict(PLACE, type='Conv2D')), 'first, has type'),
        (dict(PAIR, first=dict(PLACE, groups=0)), 'first, has groups=0'),
        ({'us': 1}, 'pair 0 has'),
        ([PAIR], 'pair 0 has'),
    ],
)
def test_bad_pairs(tmp_path, pair, message):
    path = tmp_path / 'pairs.json'
    path.write_text(json.dumps(dict(entries=[ENTRY], pairs=[pair])))
    with pytest.raises(ValueError, match=message):
        Latency(path)


def test_pairs_are_a_list(tmp_path):
    path = tmp_path / 'pairs.json'
    path.write_text(json.dumps(dict(entries=[ENTRY], pairs={})))
    with pytest.raises(ValueError, match=r'pairs is \{\}; needed is a list'):
        Latency(path)


def test_missing_entry_names_layer_precision_and_neighbours(table, layer):
    cost = Latency(table(dict(ENTRY, in_channels=7, w_bits=8), ENTRY))
    with pytest.raises(KeyError) as error:
        cost(layer('backbone.conv1'), Precision(2, 4))
    message = str(error.value)
    assert "'backbone.conv1' at W2A4" in message
    nearest = message.split('nearest entries: ')[1]
    assert nearest.index('w_bits=4') < nearest.index('in_channels=7')


@pytest.mark.parametrize(
    'entry, message',
    [
        ({k: v for k, v in ENTRY.items() if k != 'us'}, "needed are.*'us'"),
        (dict(ENTRY, us=-1), 'us=-1'),
        (dict(ENTRY, us='fast'), "us='fast'"),
        (dict(ENTRY, type='Conv2D'), "'Conv2D'; near names: Conv2d"),
        (dict(ENTRY, w_bits=9), '9 bits'),
        (dict(ENTRY, w_bits=0, a_bits=0), '0 bits: a skipped layer costs nothing'),
    ],
)
def test_bad_entries(table, entry, message):
    with pytest.raises(ValueError, match=message):
        Latency(table(entry))


def test_bad_files(table, tmp_path):
    with pytest.raises(FileNotFoundError, match='absent'):
        Latency(tmp_path / 'absent.json')
    with pytest.raises(ValueError, match='repeats'):
        Latency(table(ENTRY, ENTRY))
    with pytest.raises(ValueError, match='list of entries'):
        Latency(table())
    path = table(ENTRY)
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match='not JSON'):
        Latency(path)


def test_example_covers_resnet18():
    layers = profile(torchvision.models.resnet18(), (3, 224, 224))
    cost = Latency(EXAMPLE)
    totals = [
        total_cost(cost, layers, {p.name: precision for p in layers})
        for precision in (*(Precision(b, b) for b in (2, 3, 4, 6, 8)), FLOAT)
    ]
    assert totals == sorted(totals)
