"""tools/check.py: configs before training, files, and what cannot be checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmmpq.cli.check import main
from mmmpq.export.onnx.check.config import CHECKED

pytest.importorskip('onnx')

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / 'configs/bpnas/resnet_digits.py')


def checked(tmp_path, *args, status=0):
    """What is written for a config, and the status."""
    out = tmp_path / 'check.json'
    argv = [*args, '--json', str(out)]
    if status:
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == status
    else:
        main(argv)
    return json.loads(out.read_text())


def test_every_precision_of_a_search(tmp_path, capsys):
    found = checked(tmp_path, DIGITS, '--target', 'onnxruntime')
    assert found['ok'] and found['integer_bops'] == [pytest.approx(1)] * 2
    assert all(v['does'] == 'integers' and not v['why'] for v in found['verdicts'])
    said = capsys.readouterr().out
    assert 'backbone.layer3.1.conv2' in said and 'W2A2' in said
    assert '100% of the BOPs of the float net run in integers' in said


def test_tensorrt_has_no_8_bits_from_0(tmp_path):
    """Seen on noise: images have a sign, what a ReLU makes has none."""
    found = checked(tmp_path, DIGITS, '--target', 'tensorrt', status=1)
    refused = {
        v['name']: v['precisions'] for v in found['verdicts'] if v['does'] == 'refused'
    }
    assert 'backbone.conv1' not in refused
    assert refused['backbone.layer1.0.conv1'] == ['W8A8']
    assert refused['head.fc'] == ['W4A8', 'W6A8', 'W8A8']
    least, most = found['integer_bops']
    (stem,) = [v for v in found['verdicts'] if v['name'] == 'backbone.conv1']
    assert least == pytest.approx(stem['bops']) and most == pytest.approx(1)
    found = checked(
        *(tmp_path, DIGITS, '--target', 'tensorrt', '--policy', 'W4A4'),
        *('--cfg-options', 'model.quant.fixed.*=None'),
    )
    assert found['ok']


def test_float_precisions_and_widths_that_a_target_lacks(tmp_path):
    candidates = 'model.quant.candidates=[(8,8),(8,16),(8,32),(32,32)]'
    found = checked(
        *(tmp_path, DIGITS, '--target', 'openvino'),
        *('--cfg-options', candidates, 'model.quant.fixed.*=None'),
        status=1,
    )
    first = {
        v['precisions'][0]: (v['does'], v['quantized']) for v in found['verdicts'][:4]
    }
    assert first == {
        'W8A8': ('integers', True),
        'W8A16': ('refused', True),
        'W8A32': ('float', True),
        'W32A32': ('float', False),
    }
    assert found['integer_bops'] == [0, pytest.approx(1)]


def test_a_float_config(tmp_path):
    """As W8A8."""
    config = tmp_path / 'float.py'
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='MobileNetV2',"
        ' widen_factor=0.1), neck=dict(type="GlobalAveragePooling"),'
        " head=dict(type='LinearClsHead', num_classes=2, in_channels=1280))\n"
    )
    found = checked(tmp_path, str(config), '--target', 'finn')
    kinds = {v['type'] for v in found['verdicts']}
    assert kinds == {'Conv2d', 'DepthwiseConv2d', 'Linear'}
    assert {tuple(v['precisions']) for v in found['verdicts']} == {('W8A8',)}


def test_transposed_convolutions(tmp_path):
    config = tmp_path / 'masks.py'
    config.write_text(
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
        'model = dict(backbone=dict(depth=18, base_channels=8, stem_channels=8,'
        ' init_cfg=None), neck=dict(in_channels=[8, 16, 32, 64]))\n'
    )
    shape = '--input-shape', '3', '64', '64'
    for target, does, status in (('openvino', 'integers', 0), ('generic', 'float', 1)):
        found = checked(
            tmp_path, str(config), '--target', target, *shape, status=status
        )
        (up,) = [v for v in found['verdicts'] if v['type'] == 'ConvTranspose2d']
        assert up['does'] == does and bool(up['why']) == (does == 'float')


@pytest.fixture
def files(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    def save(name, *nodes):
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node(kind, ['x'], ['y']) for kind in nodes],
            'g',
            [info('x', TensorProto.FLOAT, [1])],
            [info('y', TensorProto.FLOAT, [1])],
        )
        onnx.save(helper.make_model(graph), tmp_path / name)

    save('net.onnx', 'Relu')
    save('net.qonnx.onnx', 'Quant')
    save('fused.onnx', 'QLinearConv')
    save('empty.onnx')
    (tmp_path / 'text.onnx').write_text('a text that is no protobuf')
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'target', 'said'),
    [
        ('net.onnx', 'tensort', "--target: found 'tensort'; .* near names: tensorrt"),
        ('nett.onnx', 'finn', 'FILE: found no file .*near names there: net.onnx'),
        ('nett.py', 'finn', 'config: found no file'),
        ('text.onnx', 'tensorrt', r'text\.onnx: it is no ONNX file'),
        ('empty.onnx', 'tensorrt', 'found a graph of no nodes'),
        ('net.qonnx.onnx', 'tensorrt', 'found nodes of QONNX; target tensorrt reads'),
        ('net.onnx', 'finn', 'found no node of QONNX; target finn reads .* qonnx'),
        ('fused.onnx', 'onnxruntime', 'operators on integers, such as QLinearConv'),
    ],
)
def test_what_cannot_be_checked(name, target, said, files):
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        main([str(files / name), '--target', target])
    assert '\n' not in str(error.value)


def test_a_file_of_nothing_quantized_is_no_success(files, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(files / 'net.onnx'), '--target', 'generic'])
    assert end.value.code == 1 and 'no layer at all' in capsys.readouterr().out


def test_targets_are_those_of_the_flags():
    told = subprocess.run(
        [sys.executable, '-m', 'mmmpq', 'check', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert all(name in told for name in CHECKED)
