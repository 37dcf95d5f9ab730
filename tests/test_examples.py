"""The examples run, and do what they say."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmmpq.export.onnx.graph import export_onnx
from mmmpq.layers.base import calibrating
from mmmpq.models import build_model, quantize
from mmmpq.policy import Policy

EXAMPLES = Path(__file__).parents[1] / 'examples'


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('budget', ['W3A3', '20 KB'])
def test_minimal_search(budget, tmp_path, capsys):
    out = tmp_path / 'policy.json'
    argv = ['--epochs', '3', '--budget', budget, '--out', str(out)]
    policy, as_float, quantized = example('minimal_search').main(argv)
    (spent,) = policy.meta['budgets']
    assert 0.7 * spent['limit'] < spent['cost'] <= spent['limit']
    assert Policy.load(out).layers == policy.layers
    assert len(set(policy.layers.values())) > 1
    assert as_float > 0.9 and quantized > 0.85
    assert 'accuracy' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['quick_start', 'your_own_detector'])
def test_notebook(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / f'{name}.ipynb').read_text())
    cells = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    assert not any(c['outputs'] for c in cells)  # of another machine
    names = {'__name__': name}
    for number, cell in enumerate(cells):
        code = compile(''.join(cell['source']), f'{name}, cell {number}', 'exec')
        exec(code, names)
    if name == 'quick_start':
        assert names['as_float'] > 0.9 and names['quantized'] > 0.85
    else:
        assert names['sizes'][1] < names['sizes'][0] / 8
    (spent,) = names['policy'].meta['budgets']
    assert 0.7 * spent['limit'] < spent['cost'] <= spent['limit']


def test_detect_onnx(tmp_path, capsys):
    """A file of a fresh net finds in a picture what the net does."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = EXAMPLES.parent / 'configs/float/retinanet_shapes_float.py'
    config = Config.fromfile(path)
    config.model.test_cfg.score_thr = 0.0
    model = quantize(build_model(config), policy='W8A8').eval()
    with torch.no_grad(), calibrating(model):
        model(torch.randn(2, 3, 128, 128))
    path = tmp_path / 'net.onnx'
    names = list('abcdef')
    export_onnx(model, path, (3, 128, 128), classes=names, end_to_end=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'picture.png')
    files = [str(path), str(tmp_path / 'picture.png')]
    out = tmp_path / 'boxes.png'
    found = example('detect_onnx').main([*files, '--score', '0', '--out', str(out)])
    assert len(found) == config.model.test_cfg.max_per_img
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    assert all(0 <= side <= 64 for _, _, box in found for side in box)
    assert Image.open(out).size == (64, 64)
    assert np.asarray(Image.open(out)).tolist() != picture.tolist()
