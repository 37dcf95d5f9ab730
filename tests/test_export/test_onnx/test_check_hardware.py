"""Chips: what their data files say, of configs and of files."""

import json

import numpy as np
import pytest

from mmmpq.costs import Hardware, profile
from mmmpq.costs.hardware import FOLDER, PROFILES
from mmmpq.export.onnx.check.config import check_net
from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS, REFUSED
from mmmpq.policy import Precision

SHAPE = 3, 32, 32


@pytest.mark.parametrize('name', PROFILES)
def test_each_line_has_its_source(name):
    data = json.loads((FOLDER / f'{name}.json').read_text())
    said = ' '.join(source.partition(': ')[0] for source in data['sources'])
    said += ' '.join(data['sources'])
    for key in ('layers', 'symmetric', 'per_channel', 'reads'):
        assert key in said
    assert Hardware.load(name).allows('Conv2d', Precision(8, 8))


def verdicts(net, target):
    found = check_net(net, target, profile(net, SHAPE), SHAPE)
    assert found.sources == Hardware.load(target).sources
    return {v.name: v for v in found.verdicts}


def test_widths(classifier, settled):
    net = settled(classifier(policy='W4A8'))
    name = 'backbone.layer1.0.conv1'
    taken = {target: verdicts(net, target)[name].does for target in PROFILES}
    assert taken['hailo'] == taken['imx500'] == taken['coreml'] == INTEGERS
    assert taken['htp'] == taken['rk3588'] == taken['tda4'] == REFUSED
    (why,) = verdicts(net, 'rk3588')[name].why
    assert why == (
        'W4A8 is none of W8A8, W8A16, W32A32, which Rockchip RK3588 (RKNN-Toolkit2) '
        'has for Conv2d'
    )
    floating = settled(classifier(policy='W32A32'))
    assert verdicts(floating, 'rk3588')[name].does == FLOAT
    assert verdicts(floating, 'hailo')[name].does == REFUSED


def test_zero_points(classifier, settled):
    """LSQ+ shifts inputs that are not symmetric, which TDA4VM and IMX500 lack."""
    net = settled(classifier(policy='W8A8', quantizer=dict(type='LSQPlusQuantizer')))
    assert {v.does for v in verdicts(net, 'htp').values()} == {INTEGERS}
    (why,) = verdicts(net, 'tda4')['backbone.conv1'].why
    assert why == "its input's zero point is not 0"


def test_files(graph, path):
    from mmmpq.export.onnx.check.file import check_onnx

    def checked(target, data='uint8', weight='int8', kind='Conv', **scheme):
        g = type(graph)()
        shape = (4, 4, 3, 3)
        x = g.pair('x', data, zero=scheme.get('zero', 0))
        scale = scheme.get('scale', 0.1)
        axis = dict(axis=1 if 'Transpose' in kind else 0) if np.size(scale) > 1 else {}
        w = g.weight('conv', weight, scale=scale, shape=shape, **axis)
        g.save(path, g.pair(g.node(kind, x, w)))
        (found,) = check_onnx(path, target).verdicts
        assert found.name == 'conv'
        return found.does, found.why

    assert checked('tda4') == checked('htp') == checked('rk3588') == (INTEGERS, [])
    assert checked('htp', data='uint16')[0] == INTEGERS
    assert checked('rk3588', zero=7)[0] == INTEGERS
    assert checked('tda4', zero=7) == (REFUSED, ["its input's zero point is not 0"])
    four = [0.1] * 4
    assert checked('tda4', scale=four)[0] == INTEGERS
    assert checked('tda4', scale=four, kind='ConvTranspose') == (
        REFUSED,
        ['its weight has 4 scales; accepted is one for ConvTranspose2d'],
    )
    with pytest.raises(ValueError, match='target hailo takes float nets'):
        checked('hailo')


def test_a_float_layer_of_a_file(graph, path):
    from mmmpq.export.onnx.check.file import check_onnx

    graph.save(path, graph.node('Conv', graph.pair('x'), weight(graph)))
    (found,) = check_onnx(path, 'htp').verdicts
    assert found.does == REFUSED and 'W32A8 is none of' in found.why[0]
    other = type(graph)()
    other.save(path, other.node('Conv', 'x', weight(other)))
    (found,) = check_onnx(path, 'htp').verdicts
    assert found.does == FLOAT and not found.quantized


def weight(g):
    return g.constant('conv.weight', np.ones((4, 4, 3, 3), np.float32))


def test_a_search_takes_the_name_of_a_chip(classifier, settled):
    config = classifier(
        policy=None, candidates=[(2, 8), (3, 8), (4, 8), (8, 4), (8, 8)]
    )
    config.model.quant.update(hardware='imx500')
    config.model.quant.pop('policy')
    net = settled(config)
    assert isinstance(net.backbone.conv1.candidates, tuple)
    assert set(net.backbone.layer1[0].conv1.candidates) == {(2, 8), (4, 8), (8, 8)}
    with pytest.raises(FileNotFoundError, match='accepted are a file, coreml, hailo'):
        Hardware.load('imx5000')
