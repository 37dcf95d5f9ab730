import json
from itertools import product
from pathlib import Path

import pytest

from mmmpq.costs import Hardware
from mmmpq.policy import SKIP, Precision

PROFILES = Path(__file__).parents[2] / 'configs/_base_/hardware'


def test_matched_248():
    hardware = Hardware.load(PROFILES / 'matched_248.json')
    allowed = {
        (w, a)
        for w, a in product(range(1, 9), repeat=2)
        if hardware.allows('Conv2d', Precision(w, a))
    }
    assert allowed == {(2, 2), (4, 4), (8, 8)}
    assert hardware.restrict('Linear', [Precision(3, 3), Precision(4, 4)]) == ((4, 4),)


def test_any_pair():
    hardware = Hardware.load(PROFILES / 'any_pair.json')
    pairs = product((1, 3, 8, 32), repeat=2)
    assert all(hardware.allows('ConvTranspose2d', Precision(*p)) for p in pairs)


def test_own_entry_then_conv_type_then_default():
    layers = {'Conv2d': ['W4A4'], 'DepthwiseConv2d': ['W8A8'], 'Conv1d': ['W2A2']}
    hardware = Hardware('npu', layers)
    assert hardware.allows('DepthwiseConv2d', Precision(8, 8))
    assert not hardware.allows('DepthwiseConv2d', Precision(4, 4))
    assert hardware.allows('DepthwiseConv1d', Precision(2, 2))
    assert not hardware.allows('Linear', Precision(4, 4))
    with pytest.raises(ValueError, match="'npu' allows none of W2A2 for Linear"):
        hardware.restrict('Linear', [Precision(2, 2)])


def test_skipping_needs_no_entry():
    layers = {'Conv2d': ['W4A4', 'W0A0'], 'Linear': ['W8A8']}
    hardware = Hardware('npu', layers)
    assert all(hardware.allows(t, SKIP) for t in ('Conv2d', 'Linear', 'Conv1d'))
    pairs = [SKIP, Precision(4, 4)]
    assert hardware.restrict('Conv2d', pairs) == tuple(pairs)
    with pytest.raises(ValueError, match='allows none of W0A0, W4A4 for Linear'):
        hardware.restrict('Linear', pairs)


ANY = {'name': 'x', 'layers': {'default': 'any'}}


@pytest.mark.parametrize(
    'data, message',
    [
        ({'name': 'x'}, 'needed are the keys'),
        ({'name': 'x', 'layers': ['W4A4']}, 'needed are the keys'),
        ([], 'found list'),
        ({'name': 'x', 'layers': {'Conv2D': 'any'}}, 'near names: Conv2d'),
        ({'name': 'x', 'layers': {'Conv2d': ['W9A9']}}, 'Conv2d.*9 bits'),
        ({'name': 'x', 'layers': {'Conv2d': ['W0A8']}}, 'Conv2d.*0 bits'),
        ({'name': 'x', 'layers': {'Conv2d': 'all'}}, "found 'all'"),
        ({'name': 'x', 'layers': {'Conv2d': []}}, 'empty list'),
        ({'name': 5, 'layers': {}}, r'name: found 5; accepted is a text'),
        (ANY | {'symmetric': 'weights'}, "symmetric: found 'weights'; accepted is a l"),
        (ANY | {'symmetric': ['w']}, "symmetric: found 'w'; accepted are weights, in"),
        (ANY | {'per_channel': 'all'}, "per_channel: found 'all'; accepted are any, C"),
        (ANY | {'per_channel': None}, 'per_channel: found None; accepted is a text or'),
        (ANY | {'reads': 'qdq'}, "reads: found 'qdq'; accepted are float, QDQ"),
        (ANY | {'sources': 5}, 'sources: found 5; accepted is a list'),
    ],
)
def test_bad_profiles(tmp_path, data, message):
    path = tmp_path / 'hardware.json'
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        Hardware.load(path)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent'):
        Hardware.load(tmp_path / 'absent.json')
    with pytest.raises(ValueError, match='path: found 5; accepted is a text or a path'):
        Hardware.load(5)
    path = tmp_path / 'cut.json'
    path.write_text('{"name": "x", "lay')
    with pytest.raises(ValueError, match='not JSON'):
        Hardware.load(path)
