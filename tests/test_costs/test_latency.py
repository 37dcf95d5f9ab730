import json
from pathlib import Path

import pytest
import torchvision

from mmmpq.costs import Latency, profile, total_cost
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
