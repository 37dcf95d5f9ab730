"""A segmentor from search to files, by the configs on Cityscapes, on a small set."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.apis import inference_model, init_model
from mmseg.visualization import SegLocalVisualizer
from torch.nn import functional as F

import mmmpq
from mmmpq.cli import cost
from mmmpq.export.onnx import cut, pooling
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork
from mmmpq.layers.base import calibrating
from mmmpq.models import build_model
from mmmpq.policy import Policy
from mmmpq.user_config import read_config

# Runners that start in the same second share a name, and so their logger.
pytestmark = pytest.mark.filterwarnings(
    'ignore:.*has been created:UserWarning', 'ignore:.*:UserWarning:mmseg.*'
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'bpnas'
BASE = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
CLASSES = 3
# What makes a run short, and the net an eighth as wide.
SMALL = [
    *(
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'train_dataloader.dataset.pipeline.2.scale=(96,48)',
    'train_dataloader.dataset.pipeline.3.crop_size=(32,64)',
    'val_dataloader.dataset.pipeline.1.scale=(96,48)',
    'test_dataloader.dataset.pipeline.1.scale=(96,48)',
    'model.data_preprocessor.size=(32,64)',
    'model.backbone.base_channels=8',
    'model.decode_head.in_channels=256',
    'model.decode_head.channels=32',
    'model.auxiliary_head.in_channels=128',
    'model.auxiliary_head.channels=16',
    'train_cfg.max_iters=6',
    'train_cfg.val_interval=6',
    'default_hooks.checkpoint.interval=6',
]
SEARCH = [
    'custom_hooks.0.calibration=1',
    'custom_hooks.0.measure=0',
    'custom_hooks.0.budgets.0.input_shape=(3,32,64)',
]


def write_cityscapes(root):
    """Pictures of three classes, told by their brightness, in Cityscapes' folders."""
    random = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 3)):
        images, labels = (
            root / kind / split / 'city' for kind in ('leftImg8bit', 'gtFine')
        )
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            label = np.zeros((48, 96), np.uint8)
            label[:20] = 1
            x = int(random.integers(0, 60))
            label[15:35, x : x + 30] = 2
            image = 80 * label[..., None] + random.integers(0, 60, (48, 96, 3))
            label[:2] = 255  # of no class
            name = f'city_{i:06}_000019'
            cv2.imwrite(str(images / f'{name}_leftImg8bit.png'), image.astype(np.uint8))
            cv2.imwrite(str(labels / f'{name}_gtFine_labelTrainIds.png'), label)


@pytest.fixture(scope='module')
def call():
    """Runs a verb of the command line."""
    with pytest.MonkeyPatch.context() as patch:

        def run(verb, *args):
            for of_the_run_before in (DefaultScope, SegLocalVisualizer):
                of_the_run_before._instance_dict.clear()
            argv = [str(arg) for arg in args]
            patch.setattr(sys, 'argv', [verb, *argv])
            importlib.import_module(f'mmmpq.cli.{verb}').main()

        yield run


@pytest.fixture(scope='module')
def folder(tmp_path_factory, call):
    """Where a float net was trained, searched, and the net found was fine-tuned."""
    folder = tmp_path_factory.mktemp('segmentation')
    write_cityscapes(folder / 'data/cityscapes')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        learns = ['train_cfg.max_iters=40', 'optim_wrapper.optimizer.lr=0.1']
        options = ['--cfg-options', *SMALL, 'model.pretrained=None', *learns]
        call('train', BASE, '--work-dir', 'work_dirs/float', '--seed', 0, *options)
        options = ['--cfg-options', *SMALL]
        start = ['load_from=work_dirs/float/iter_40.pth', *SEARCH]
        call('train', CONFIGS / 'fcn_r50_cityscapes.py', *options, *start)
        call('train', CONFIGS / 'fcn_r50_cityscapes_finetune.py', *options)
        yield folder


@pytest.fixture(scope='module')
def tuned(folder):
    """The config of the fine-tuning and its checkpoint, for a command line."""
    run = folder / 'work_dirs/fcn_r50_cityscapes_finetune'
    return CONFIGS / 'fcn_r50_cityscapes_finetune.py', run / 'iter_6.pth'


@pytest.fixture(scope='module')
def files(call, tuned, folder):
    options = ['--cfg-options', *SMALL]
    exact = ['--containers', 'auto']  # biases are not rounded
    call('export', *tuned, '--format', 'packed', 'onnx', '--fold', *exact, *options)
    return tuned[1].with_suffix('.safetensors'), tuned[1].with_suffix('.onnx')


@pytest.fixture
def picture(folder):
    return str(next((folder / 'data/cityscapes/leftImg8bit/val').rglob('*.png')))


def metrics_of(call, folder, config, checkpoint, *args):
    out = folder / 'metrics.json'
    flags = ['--out', out, '--out-item', 'metrics', '--work-dir', folder / 'test']
    call('test', config, checkpoint, *flags, *args, '--cfg-options', *SMALL)
    return json.loads(out.read_text())


def test_the_search_keeps_its_budget_and_leaves_the_auxiliary_head(folder):
    policy = Policy.load(folder / 'work_dirs/fcn_r50_cityscapes/policy.json')
    budget = policy.meta['budgets'][0]
    assert budget['cost'] <= budget['limit']
    # What training alone calls is not quantized; the last layer of a forward is.
    assert not [n for n in policy.layers if n.startswith('auxiliary_head')]
    assert policy.layers['decode_head.conv_seg'].w_bits in (4, 6, 8)
    report = folder / 'work_dirs/fcn_r50_cityscapes/report/index.html'
    assert report.is_file()


def test_the_packed_file_and_the_checkpoint_have_one_miou(call, folder, tuned, files):
    config, checkpoint = tuned
    wanted = metrics_of(call, folder, config, checkpoint)
    assert set(wanted) >= {'mIoU', 'aAcc', 'mAcc'} and 0 < wanted['mIoU'] <= 100
    found = metrics_of(call, folder, config, files[0])
    assert found['mIoU'] == pytest.approx(wanted['mIoU'], abs=0.5)


def test_the_packed_file_in_mmsegs_own_inference(files, tuned, picture):
    net = mmmpq.load_packed(files[0])
    found = inference_model(net, picture)
    assert len(net.dataset_meta['classes']) == 19
    config = tuned[1].parent / tuned[0].name  # as the training wrote it
    other = init_model(str(config), str(tuned[1]), device='cpu')
    other.cfg.test_pipeline = other.cfg.test_dataloader.dataset.pipeline
    wanted = inference_model(other, picture)
    scores = [sample.seg_logits.data for sample in (found, wanted)]
    assert scores[0].shape == (19, 48, 96)
    assert (scores[0] - scores[1]).abs().max() < 0.05 * scores[1].abs().max()


def test_the_onnx_file_beside_pytorch(call, folder, tuned, files, capsys):
    config, checkpoint = tuned
    out = folder / 'onnx.json'
    flags = ['--checkpoint', checkpoint, '--out', out, '--work-dir', folder / 'test']
    call('test_onnx', config, files[1], *flags, '--cfg-options', *SMALL)
    written = json.loads(out.read_text())
    own, other = (written['figures'][k]['mIoU'] for k in ('PyTorch', 'ONNX Runtime'))
    assert own == pytest.approx(other, abs=0.5)
    found = written['agreement']['ONNX Runtime']
    assert found['pixels'] and found['scores'] == 3 * 48 * 96
    assert found['near'] >= 0.99 * found['scores']
    assert 'the same class in' in capsys.readouterr().out


def test_the_auxiliary_head_may_be_left_out_of_the_file(call, folder, tuned, files):
    """It is trained alone: without it the file is smaller and predicts the same."""
    out = folder / 'small.safetensors'
    options = [o for o in SMALL if not o.startswith('model.auxiliary_head')]
    options = ['--cfg-options', *options, 'model.auxiliary_head=None']
    call('export', *tuned, '--format', 'packed', '--fold', '--out', out, *options)
    small, whole = (mmmpq.load_packed(path) for path in (out, files[0]))
    assert whole.with_auxiliary_head and not small.with_auxiliary_head
    assert out.stat().st_size < files[0].stat().st_size
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(small(images), whole(images))


def test_ptq_of_a_float_segmentor(call, folder, monkeypatch):
    monkeypatch.chdir(folder)
    flags = ['--budget', 'W4A8', '--images', 4, '--rounding', 'nearest']
    flags += ['--work-dir', 'ptq', '--onnx', '--cfg-options', *SMALL]
    call('ptq', BASE, 'work_dirs/float/iter_40.pth', *flags)
    found = json.loads(Path('ptq/ptq.json').read_text())
    assert found['float']['mIoU'] > 50 and 0 <= found['metrics']['mIoU'] <= 100
    assert found['budgets'][0]['cost'] <= found['budgets'][0]['limit']
    assert Path('ptq/net.onnx').is_file()
    assert mmmpq.load_packed('ptq/net.safetensors').with_decode_head


def test_costs_of_a_toolboxs_config(capsys):
    cost.main([BASE, '--json'])
    found = json.loads(capsys.readouterr().out)
    macs = {layer['name']: layer['macs'] for layer in found['layers']}
    # At the crop of 512 x 1024, an eighth of it in the head: 3 x 3 x 2048 x 512.
    assert macs['decode_head.convs.0.conv'] == 64 * 128 * 9 * 2048 * 512
    assert macs['auxiliary_head.convs.0.conv'] == 0


def test_augmented_and_drawn(call, folder, tuned):
    metrics = metrics_of(call, folder, *tuned, '--tta')
    assert 0 < metrics['mIoU'] <= 100
    # A visualizer is one for a whole process, with the folder that it had first.
    command = [sys.executable, ROOT / 'tools/test.py', *tuned]
    command += ['--work-dir', folder / 'test', '--show-dir', folder / 'shown']
    subprocess.run([*command, '--cfg-options', *SMALL], cwd=folder, check=True)
    assert len(list((folder / 'shown').rglob('*.png'))) == 3


PSPNET = {
    'model.backbone.base_channels': 8,
    'model.decode_head.in_channels': 64,
    'model.decode_head.channels': 16,
    'model.auxiliary_head': None,
}


@torch.no_grad()
def test_bins_that_do_not_divide_a_map(tmp_path):
    """PSPNet's 3 and 6 in maps of 9 x 17 are products: ONNX knows no such pooling."""
    for size, bins in ((9, 6), (17, 3), (5, 1), (4, 4)):
        x = torch.randn(1, 2, size, size)
        found = pooling.means(size, bins) @ x @ pooling.means(size, bins).t()
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, bins))
    name = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    net = build_model(read_config(name, PSPNET), 'W8A8').eval()
    images = torch.randn(2, 3, 72, 136)
    with calibrating(net):
        cut.network(net, images)
    export_onnx(net, tmp_path / 'x.onnx', (3, 72, 136), containers='auto')
    network = OnnxNetwork(tmp_path / 'x.onnx')
    assert network.names == ['seg_logits']
    (found,), (wanted,) = network(images).values(), cut.network(net, images).values()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    with pytest.raises(ValueError, match=r'found images of \(3, 72, 72\); it was'):
        network(images[..., :72])
