"""benchmarks/agreement.py on a few images and a net that is not trained."""

import sys
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agreement():
    import agreement

    return agreement


def test_of_equal_and_other_logits(agreement):
    logits = np.log(np.float32([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]))
    same = agreement.compare(logits, logits + 3)
    assert same['agreement'] == [100, 0]
    assert same['kl'] == pytest.approx([0, 0], abs=1e-6)
    other = np.log(np.float32([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]))
    found = agreement.compare(logits, other)
    assert found['n'] == 2 and found['agreement'][0] == 50
    assert found['kl'][0] == pytest.approx(0.25 * np.log(2) / 2, rel=1e-5)
    # two values, a and 0: their deviation is a / sqrt(2)
    assert found['kl'][1] == pytest.approx(1.96 * 0.25 * np.log(2) / 2, rel=1e-5)


def test_label_and_measure(agreement, tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    from mmmpq.models import build_model

    random = np.random.default_rng(0)
    for split, count in (('train', 4), ('test', 6)):
        (tmp_path / split).mkdir()
        for i in range(count):
            image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / split / f'{i}.jpg'), image)
    config = str(ROOT / 'configs/float/efficientnet-lite0_crops_float.py')
    torch.manual_seed(0)
    model = build_model(Config.fromfile(config))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.randn(8, 3, 64, 64), mode='tensor')  # statistics, else logits vanish
    torch.nn.init.normal_(model.head.fc.weight, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')

    def call(verb, *words):
        args = [verb, config, str(tmp_path / 'float.pth'), str(tmp_path), *words]
        monkeypatch.setattr(sys, 'argv', ['agreement.py', *args])
        agreement.main()

    with pytest.raises(FileNotFoundError, match='label it first'):
        call('measure')
    call('label')
    for split, count in (('train', 4), ('test', 6)):
        lines = (tmp_path / f'{split}.txt').read_text().splitlines()
        assert [line.split()[0] for line in lines] == [f'{i}.jpg' for i in range(count)]
    logits = np.load(tmp_path / 'test_logits.npy')
    assert logits.shape == (6, 1000)
    assert [int(line.split()[1]) for line in lines] == logits.argmax(1).tolist()
    call('measure', '--json', str(tmp_path / 'same.json'))
    found = Config.fromfile(tmp_path / 'same.json')
    assert found.n == 6 and found.agreement == [100, 0]
    assert found.kl[0] == pytest.approx(0, abs=1e-6)
    words = ('--calibration', '1', '--cfg-options', 'train_dataloader.batch_size=2')
    call('measure', '--policy', 'W2A2', '--json', str(tmp_path / 'w2.json'), *words)
    assert Config.fromfile(tmp_path / 'w2.json').kl[0] > 1e-6
    from mmmpq.export.packed import save_packed
    from mmmpq.models import quantize

    quantize(model.eval(), policy='W8A8')
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64), mode='tensor')  # ranges
    cfg = Config.fromfile(config)
    cfg.model = dict(
        dict(cfg.model, type='mmmpq.QuantModel', base_type='ImageClassifier'),
        quant=dict(policy='W8A8'),
    )
    packed = save_packed(model, tmp_path / 'net.safetensors', cfg)
    # As in a process of its own, which has built no other model.
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
    args = ['measure', config, str(packed), str(tmp_path)]
    args += ['--json', str(tmp_path / 'w8.json')]
    monkeypatch.setattr(sys, 'argv', ['agreement.py', *args])
    agreement.main()
    assert 0 < Config.fromfile(tmp_path / 'w8.json').kl[0] < 1
