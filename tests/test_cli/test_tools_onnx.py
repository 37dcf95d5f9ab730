"""tools/test_onnx.py, on a classifier that sees four tiny pictures."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmmpq.engine import launch
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import sums_are_cut
from mmmpq.layers.base import calibrating

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier', quant=dict(policy='W3A4'),
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
test_dataloader = dict(
    batch_size=3, num_workers=0,
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
visualizer = dict(type='UniversalVisualizer')
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, its four pictures, and a net as checkpoint and as ONNX file."""
    folder = tmp_path_factory.mktemp('onnx')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(2):
            picture = random.integers(0, 120, (16, 16, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)
    (folder / 'net.py').write_text(CONFIG.format(pictures=str(folder / 'pictures')))
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(folder / 'net.py').model)
    model.init_weights()
    with torch.no_grad(), calibrating(model.eval()):
        model(torch.randn(4, 3, 16, 16))
    torch.save(dict(state_dict=model.state_dict()), folder / 'net.pth')
    export_onnx(model, folder / 'net.onnx', (3, 16, 16), vnni=True)
    export_onnx(model, folder / 'unsigned.onnx', (3, 16, 16))  # the default is exact
    return folder


@pytest.fixture
def tool(folder, monkeypatch):
    """Runs the tool with a work directory of its own."""
    module = importlib.import_module('mmmpq.cli.test_onnx')

    def call(*flags, model='net.onnx'):
        argv = ['test_onnx.py', folder / 'net.py', folder / model, *flags]
        argv += ['--work-dir', folder / 'work']
        monkeypatch.setattr(sys, 'argv', [str(arg) for arg in argv])
        launch.run(module.main)

    return call


def test_beside_pytorch(folder, tool, capsys):
    out = folder / 'figures.json'
    tool('--checkpoint', folder / 'net.pth', '--yardstick', '--out', out)
    written = json.loads(out.read_text())
    figures = written['figures']
    assert list(figures) == ['PyTorch', 'PyTorch, other sums', 'ONNX Runtime']
    assert len({row['accuracy/top1'] for row in figures.values()}) == 1
    assert all(row['ms_per_image'] > 0 for row in figures.values())
    found = written['agreement']['ONNX Runtime']
    assert (found['images'], found['equal'], found['scores']) == (4, 4, 8)
    assert found['largest'] < 1e-2
    said = capsys.readouterr().out
    assert 'accuracy/top1' in said
    assert 'ONNX Runtime against PyTorch: equal predictions in 4 of 4 images' in said


def test_alone(folder, tool, capsys):
    tool('--threads', '1')
    said = capsys.readouterr().out
    assert 'accuracy/top1' in said and 'against PyTorch' not in said
    assert ('1 layers at W8A8, such as head.fc' in said) == sums_are_cut()
    tool(model='unsigned.onnx')
    assert 'W8A8' not in capsys.readouterr().out


@pytest.mark.skipif(not find_spec('openvino'), reason='no openvino')
def test_in_openvino(folder, tool, capsys):
    tool('--checkpoint', folder / 'net.pth', '--runtime', 'openvino', '--threads', '1')
    said = capsys.readouterr().out
    assert 'OpenVINO against PyTorch: equal predictions in 4 of 4 images' in said


def test_user_errors_are_one_line(folder, tool, capsys, monkeypatch):
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)

    def error(*flags, **kwargs):
        with pytest.raises(SystemExit) as stopped:
            tool(*flags, **kwargs)
        assert stopped.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        return said[-1]

    assert 'found no file' in error(model='none.onnx')
    assert '--checkpoint: found no file' in error('--checkpoint', 'none.pth')
    said = error('--cfg-options', 'model.quant.policy=W4A4')
    assert 'MODEL.onnx' in said and 'backbone.layer1.0.conv1' in said
    assert '--yardstick needs --checkpoint' in error('--yardstick')
    state = torch.load(folder / 'net.pth', weights_only=True)['state_dict']
    state = {k: v for k, v in state.items() if 'quantizer' not in k}
    torch.save(dict(state_dict=state), folder / 'float.pth')
    said = error('--checkpoint', folder / 'float.pth')
    assert '--checkpoint' in said and 'float.pth' in said
