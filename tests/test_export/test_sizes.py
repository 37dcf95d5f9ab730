"""Bytes by hand, the promise on the size of the file, and the table that shows them."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from rich.console import Console

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.packed import save_packed
from mmmpq.export.sizes import rest_bytes, sizes
from mmmpq.layers import quantized_layers
from mmmpq.visualization.sizes import check_sizes, size_section, size_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shapes():
    """Config of the demo's detector at W3A3."""
    config = Config.fromfile(ROOT / 'configs/bpnas/retinanet_shapes_finetune.py')
    config.model.quant.policy = 'W3A3'
    return config


def test_sizes_of_a_classifier(classifier, settled, tmp_path):
    config = classifier()
    net = settled(config)
    net.data_preprocessor.register_buffer('odd', torch.zeros(7))
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    onnx = dict(bytes=9000, layers={'backbone.conv1': dict(weight_bytes=1180)})
    found = sizes(net, file, onnx)
    layers = quantized_layers(net)
    assert [layer['name'] for layer in found['layers']] == list(layers)
    first, second = found['layers'][:2]
    assert first == dict(
        name='backbone.conv1',
        w_bits=8,
        weights=3 * 8 * 49,
        float=4 * 3 * 8 * 49,
        theory=3 * 8 * 49,
        packed=3 * 8 * 49 + 4,
        onnx=1180,
    )
    assert second['theory'] == 8 * 8 * 9 * 3 / 8 == second['packed'] - 4
    rest = 10 * 8  # num_batches_tracked
    rest += 4 * (4 * (5 * 8 + 5 * 16) + 4 + 7)  # BatchNorms, the head's bias, `odd`
    assert found['rest']['float'] == found['rest']['theory'] == rest == rest_bytes(net)
    assert found['total']['packed'] == file.stat().st_size
    assert found['total']['onnx'] == 9000 and found['rest']['onnx'] == 9000 - 1180
    for kind, total in found['total'].items():
        assert total == found['weights'][kind] + found['rest'][kind]
    assert json.loads(json.dumps(found)) == found


def test_the_packed_detector_is_as_small_as_promised(shapes, settled, tmp_path):
    net = settled(shapes, 64)
    rest = rest_bytes(net)
    for fold in (False, True):
        if fold:
            fold_batchnorm(net, (3, 64, 64))
            assert rest_bytes(net) < rest
        file = save_packed(net, tmp_path / 'x.safetensors', shapes)
        total = sizes(net, file, rest=rest)['total']
        assert total['packed'] <= 1.03 * total['theory']
    weights = sizes(net, file)['weights']
    assert weights['float'] / weights['theory'] > 9.8
    assert weights['float'] / weights['packed'] > 9.5


def test_float_layers_and_other_floats_are_the_rest(classifier, settled):
    net = settled(classifier(policy='W32A32', fixed={'*': 'W32A32'}))
    found = sizes(net)
    assert found['layers'] == [] and found['weights'] == dict(float=0, theory=0)
    state = [v for k, v in net.state_dict().items() if '_quantizer.' not in k]
    whole = sum(v.numel() * v.element_size() for v in state)
    assert found['total'] == dict(float=whole, theory=whole)


def test_tables(classifier, settled, tmp_path):
    config = classifier()
    net = settled(config)
    found = sizes(net, save_packed(net, tmp_path / 'x.safetensors', config))
    console = Console(width=120, record=True)
    console.print(size_table(check_sizes(found)))
    text, html = console.export_text(), size_section(found)
    for said in ('backbone.conv1', 'quantized weights', '1.18 KB (4', 'packed file'):
        assert said in text and said in html
    assert 'ONNX' not in text and 'ONNX file' not in html


@pytest.mark.parametrize('broken', ['layers', 'weights', 'rest', 'total'])
def test_refuses_other_json(classifier, settled, broken):
    found = sizes(settled(classifier()))
    del found[broken]
    with pytest.raises(ValueError, match=r'--sizes must be what tools/export\.py'):
        check_sizes(found, '--sizes')
