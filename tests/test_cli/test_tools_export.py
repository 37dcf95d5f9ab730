"""tools/export.py on a classifier that sees eight tiny pictures."""

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader

import mmmpq
from mmmpq.engine.hooks import CalibrationHook
from mmmpq.export.packed.file import read_packed
from mmmpq.fileio import read_checkpoint
from mmmpq.layers import quantized_layers
from mmmpq.layers.base import calibrating
from mmmpq.models.loading import load_whole
from mmmpq.policy import Policy, Precision

# Runners that start in the same second share a name, and so their logger.
pytestmark = pytest.mark.filterwarnings('ignore:.*has been created:UserWarning')

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
default_scope = 'mmpretrain'
data_preprocessor = dict(mean=[127] * 3, std=[64] * 3, num_classes=2)
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier',
    quant=dict(policy={policy!r}),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8, topk=(1,)))
test_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_prefix={pictures!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
visualizer = dict(type='UniversalVisualizer')
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)
"""


def build(config, **quant):
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(config)
    model = dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    model['quant'] = dict(model['quant'], **quant)
    return MODELS.build(model)


@pytest.fixture(scope='module')
def tool():
    return importlib.import_module('mmmpq.cli.export')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('export')
    random = np.random.default_rng(0)
    for label in ('dark', 'light'):
        (folder / 'pictures' / label).mkdir(parents=True)
        for i in range(4):
            picture = random.integers(0, 120, (16, 16, 3)) + 120 * (label == 'light')
            cv2.imwrite(str(folder / 'pictures' / label / f'{label}{i}.png'), picture)
    policy = str(folder / 'policy.json')
    config = CONFIG.format(policy=policy, pictures=str(folder / 'pictures'))
    (folder / 'tiny.py').write_text(config)
    torch.manual_seed(0)
    names = list(quantized_layers(build(folder / 'tiny.py', policy='W3A3')))
    layers = {n: Precision(2 + i % 7, 4) for i, n in enumerate(names)}
    Policy(layers, dict(input_shape=[3, 16, 16], seed=5)).save(policy)
    net = build(folder / 'tiny.py')
    with calibrating(net), torch.no_grad():
        net(torch.randn(8, 3, 16, 16))
    meta = dict(dataset_meta=dict(classes=('dark', 'light')))
    state = {f'module.{k}': v for k, v in net.state_dict().items()}  # of DDP
    torch.save(dict(state_dict=state, meta=meta), folder / 'epoch_3.pth')
    return folder


def export(tool, folder, *args, checkpoint='epoch_3.pth'):
    tool.main([str(folder / 'tiny.py'), str(folder / checkpoint), *args])


def run(verb, folder, monkeypatch, checkpoint, config='tiny.py'):
    """One of the tools that take CONFIG and CHECKPOINT."""
    flags = ['--format', 'packed'] if verb == 'export' else []
    if verb == 'test':
        flags = ['--work-dir', str(folder / 'test')]
    argv = [str(folder / config), str(folder / checkpoint), *flags]
    monkeypatch.setattr(sys, 'argv', [verb, *argv])
    monkeypatch.chdir(folder)
    importlib.import_module(f'mmmpq.cli.{verb}').main()


def test_packed(tool, folder, capsys):
    export(tool, folder, '--format', 'packed')
    said = capsys.readouterr().out
    assert 'backbone.layer1.0.conv1' in said and 'epoch_3.safetensors' in said
    sizes = json.loads((folder / 'sizes.json').read_text())
    file = folder / 'epoch_3.safetensors'
    assert sizes['total']['packed'] == file.stat().st_size
    net = build(folder / 'tiny.py')
    load_whole(net, read_checkpoint(folder / 'epoch_3.pth'), 'epoch_3.pth')
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(mmmpq.load_packed(file)(images), net.eval()(images))
    found = CheckpointLoader.load_checkpoint(str(file))
    assert found['meta'] == dict(dataset_meta=dict(classes=('dark', 'light')))
    packed = found['state_dict']._metadata['']['packed']
    assert packed['meta']['seed'] == 5


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_the_toolbox_tests_both_files_alike(tool, folder, monkeypatch, ending):
    if ending == 'safetensors' and not (folder / 'epoch_3.safetensors').exists():
        export(tool, folder, '--format', 'packed')
    args = [str(folder / 'tiny.py'), str(folder / f'epoch_3.{ending}')]
    out = folder / f'{ending}.pkl'
    args += ['--work-dir', str(folder / 'test'), '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['test.py', *args])
    runpy.run_path(str(ROOT / 'tools' / 'test.py'), run_name='__main__')
    if (folder / 'pth.pkl').exists() and (folder / 'safetensors.pkl').exists():
        from mmengine.fileio import load

        one, two = (load(folder / f'{kind}.pkl') for kind in ('pth', 'safetensors'))
        assert len(one) == len(two) == 8
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a['pred_score'], b['pred_score'])


def test_fold_and_out(tool, folder, tmp_path, capsys):
    out = tmp_path / 'new' / 'small.safetensors'
    export(tool, folder, '--format', 'packed', '--fold', '--out', str(out))
    assert (
        'folded 10 BatchNorms; largest deviation of a layer' in capsys.readouterr().out
    )
    assert (tmp_path / 'new' / 'sizes.json').is_file()
    net = mmmpq.load_packed(out)
    assert not [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_what_is_replaced_is_said(tool, folder, tmp_path, capsys):
    out = tmp_path / 'run[/red]' / 'x.safetensors'
    for times in range(2):
        export(tool, folder, '--format', 'packed', '--out', str(out))
        said = capsys.readouterr().out
        assert f'{out} (' in said and said.count(', replaced') == 2 * times
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ValueError, match='file is a file; accepted is a file in a'):
        export(
            *(tool, folder, '--format', 'packed'),
            *('--out', str(tmp_path / 'file' / 'x.safetensors')),
        )


def test_a_packed_file_is_exported_again(tool, folder, tmp_path):
    first, second = tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'
    export(tool, folder, '--format', 'packed', '--out', str(first))
    export(
        tool, folder, '--format', 'packed', '--out', str(second), checkpoint=str(first)
    )
    images = torch.randn(2, 3, 16, 16)
    one, two = (mmmpq.load_packed(path)(images) for path in (first, second))
    assert torch.equal(one, two)


def test_onnx_is_called_with_its_flags(tool, folder, tmp_path, monkeypatch):
    called = []

    class Exporter:
        @staticmethod
        def export_onnx(model, path, shape, opset, **options):
            called.append((type(model).__name__, tuple(shape), opset, options))
            path.write_bytes(b'x' * 77)
            layers = {'backbone.conv1': dict(weight_bytes=50)}
            return dict(bytes=77, layers=layers, islands=None)

    monkeypatch.setitem(sys.modules, 'mmmpq.export.onnx.graph', Exporter)
    out = tmp_path / 'x.onnx'
    export(
        tool, folder, '--format', 'onnx', 'packed', '--opset', '22', '--out', str(out)
    )
    whole = dict(classes=('dark', 'light'), end_to_end=False, normalize=True)
    options = dict(whole, containers='8bit', vnni=False)
    assert called == [('ImageClassifier', (3, 16, 16), 22, options)]
    assert out.stat().st_size == 77 and out.with_suffix('.safetensors').is_file()
    sizes = json.loads((tmp_path / 'sizes.json').read_text())
    assert set(sizes['total']) == {'float', 'theory', 'packed', 'onnx'}
    export(
        tool, folder, '--format', 'onnx', '--out', str(out),
        *('--input-shape', '3', '8', '8', '--containers', 'auto', '--vnni'),
    )  # fmt: skip
    options = dict(whole, containers='auto', vnni=True)
    assert called[1] == ('ImageClassifier', (3, 8, 8), 21, options)


def test_onnx_for_a_runtime(tool, folder, tmp_path, capsys):
    """Ranges come from the pictures that it trains on; what it costs is said."""
    pytest.importorskip('onnxruntime')
    out = tmp_path / 'x.onnx'
    config = (folder / 'tiny.py').read_text()
    config += 'train_dataloader = dict(test_dataloader)\n'
    (folder / 'trained.py').write_text(config)
    argv = [str(folder / 'trained.py'), str(folder / 'epoch_3.pth')]
    argv += ['--fold', '--format', 'onnx', '--out', str(out), '--target']
    tool.main([*argv, 'onnxruntime', '--batches', '2'])
    said = capsys.readouterr().out
    assert 'tensors between layers are rounded to 8 bits for onnxruntime' in said
    assert '% (root mean square, of 2 batches)' in said
    assert 'conv1' in said and 'quantize once more' in said
    assert 'layers have inputs of fewer than 8 bits, and each clips them' in said
    first = out.read_bytes()
    tool.main([*argv, 'onnxruntime', '--batches', '2'])
    assert out.read_bytes() == first
    with pytest.raises(ValueError, match=r"target: found 'onnx'; accepted are generic"):
        tool.main([*argv, 'onnx'])
    with pytest.raises(ValueError, match=r'images: found \(3, 16, 16\).*\(3, 8, 8\)'):
        tool.main([*argv, 'generic', '--input-shape', '3', '8', '8'])
    assert out.read_bytes() == first
    argv[0] = str(folder / 'tiny.py')
    with pytest.raises(ValueError, match='train_dataloader: found none'):
        tool.main([*argv, 'generic'])


def test_the_smallest_file_says_what_it_costs(tool, folder, tmp_path, capsys):
    pytest.importorskip('onnx')
    flags = '--format', 'onnx', '--out', str(tmp_path / 'x.onnx'), '--containers'
    export(tool, folder, *flags, 'auto')
    assert 'slower than float. --containers 8bit is fast' in capsys.readouterr().out
    export(tool, folder, *flags, '8bit')
    assert 'slower than float' not in capsys.readouterr().out


def test_qonnx(tool, folder, tmp_path):
    pytest.importorskip('onnx')
    out = tmp_path / 'x.qonnx.onnx'
    export(tool, folder, '--format', 'qonnx', '--fold', '--out', str(out))
    assert b'qonnx.custom_op.general' in out.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {'x.qonnx.onnx', 'sizes.json'}


def test_a_target_is_of_onnx(tool, folder, capsys):
    with pytest.raises(SystemExit):
        export(tool, folder, '--format', 'packed', '--target', 'onnxruntime')
    assert '--target needs --format onnx' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda state: dict(list(state.items())[:-3]), r'nothing for \d+ tensors'),
        (
            lambda state: {k: v for k, v in state.items() if 'quantizer' not in k},
            r"it is of a float net.*policy=W32A32 'model\.quant\.fixed\.\*=None'",
        ),
        (
            lambda state: {**state, 'module.head.fc.bias': torch.zeros(9)},
            'another model',
        ),
        (
            lambda state: {k: v for k, v in state.items() if 'running' in k},
            r'nothing for \d+ tensors, such as backbone\.conv1\.weight',
        ),
        (lambda state: {f'x.{k}': v for k, v in state.items()}, 'nothing for'),
        (
            lambda state: {
                k: -torch.ones_like(v) if k.endswith('quantizer.signed') else v
                for k, v in state.items()
            },
            r'not calibrated: backbone\.conv1\.w_quantizer',
        ),
        (lambda state: 3, 'holds int 3; accepted is a dict of tensors'),
        (lambda state: Path, r'asks for .*Path, which may run code'),
    ],
)
@pytest.mark.parametrize('verb', ['export', 'test', 'verify_integer'])
def test_checkpoints_of_other_nets(verb, folder, write, message, monkeypatch):
    """Every tool refuses them; what fits of them has plausible accuracies."""
    found = torch.load(folder / 'epoch_3.pth')
    torch.save(dict(found, state_dict=write(found['state_dict'])), folder / 'bad.pth')
    with pytest.raises(ValueError, match=message) as error:
        run(verb, folder, monkeypatch, 'bad.pth')
    assert 'bad.pth' in str(error.value)
    assert not (folder / 'bad.safetensors').exists()


@pytest.mark.parametrize('verb', ['test', 'verify_integer'])
def test_the_checkpoint_of_the_net(verb, folder, monkeypatch):
    run(verb, folder, monkeypatch, 'epoch_3.pth')


def test_a_quantized_checkpoint_for_the_float_net(folder, monkeypatch):
    config = Config.fromfile(folder / 'tiny.py')
    config.model.type = config.model.pop('base_type')
    del config.model['quant']
    config.dump(folder / 'float.py')
    with pytest.raises(ValueError, match=r'a layer that is not quantized here'):
        run('test', folder, monkeypatch, 'epoch_3.pth', 'float.py')


def test_a_float_net_as_it_is(tool, folder, tmp_path):
    """32-bit layers have quantizers, which a float checkpoint knows nothing of."""
    runtime = pytest.importorskip('onnxruntime')
    state = torch.load(folder / 'epoch_3.pth')['state_dict']
    state = {
        k.removeprefix('module.'): v for k, v in state.items() if 'quantizer' not in k
    }
    torch.save(dict(state_dict=state), folder / 'float.pth')
    export(
        tool, folder, '--format', 'onnx', '--out', str(tmp_path / 'float.onnx'),
        *('--cfg-options', 'model.quant.policy=W32A32', 'model.quant.fixed.*=None'),
        *('--input-shape', '3', '16', '16'), checkpoint='float.pth',
    )  # fmt: skip
    net = build(folder / 'tiny.py', policy='W32A32', fixed={'*': None}).eval()
    net.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 16, 16)
    session = runtime.InferenceSession(str(tmp_path / 'float.onnx'))
    found = session.run(None, {'images': images.numpy()})[0]
    with torch.no_grad():
        wanted = net.head(net.extract_feat(images))
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


def test_a_searched_net_of_another_policy(tool, folder):
    found = torch.load(folder / 'epoch_3.pth')
    layers = Policy.load(folder / 'policy.json').layers
    policy = {**{n: list(p) for n, p in layers.items()}, 'backbone.conv1': [7, 7]}
    torch.save(dict(found, meta=dict(policy=policy)), folder / 'other.pth')
    with pytest.raises(
        ValueError, match=r'another policy.*backbone\.conv1 is at \[7, 7'
    ):
        export(tool, folder, '--format', 'packed', checkpoint='other.pth')


def test_a_fine_tuned_net_of_another_policy(tool, folder):
    found = torch.load(folder / 'epoch_3.pth')
    runner = SimpleNamespace(model=build(folder / 'tiny.py', policy='W5A5'))
    CalibrationHook().before_save_checkpoint(runner, found)
    torch.save(found, folder / 'tuned.pth')
    with pytest.raises(ValueError, match=r'another policy.*conv1 is at \[8, 8\]'):
        export(tool, folder, '--format', 'packed', checkpoint='tuned.pth')


def test_a_uniform_net_gets_its_costs(tool, folder, tmp_path):
    config = (folder / 'tiny.py').read_text()
    policy = repr(str(folder / 'policy.json'))
    (folder / 'uniform.py').write_text(config.replace(policy, "'W4A4'"))
    net = build(folder / 'uniform.py')
    with calibrating(net), torch.no_grad():
        net(torch.randn(8, 3, 16, 16))
    torch.save(net.state_dict(), folder / 'uniform.pth')
    out = tmp_path / 'x.safetensors'
    tool.main(
        [
            *(str(folder / 'uniform.py'), str(folder / 'uniform.pth')),
            *('--format', 'packed', '--out', str(out)),
            *('--input-shape', '3', '16', '16'),
        ]
    )
    meta = read_packed(out).policy.meta
    assert meta['input_shape'] == [3, 16, 16]
    weights = [layer.weight.numel() for layer in quantized_layers(net).values()]
    costs = meta['costs']
    assert costs['float']['weight_bytes'] == 4 * sum(weights)
    first, *middle, last = weights
    assert costs['searched']['weight_bytes'] == sum(middle) / 2 + first + last
    assert costs['searched']['bops'] < costs['float']['bops'] / 16


def test_the_output_is_another_file(tool, folder, tmp_path):
    file = tmp_path / 'x.safetensors'
    export(tool, folder, '--format', 'packed', '--out', str(file))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r'x\.safetensors is CHECKPOINT itself'):
        export(tool, folder, '--format', 'packed', '--fold', checkpoint=str(file))
    assert file.read_bytes() == before
    for out in (str(tmp_path), f'{tmp_path}/new/'):
        with pytest.raises(ValueError, match=r'--out: .* is a folder; accepted is the'):
            export(tool, folder, '--format', 'packed', 'onnx', '--out', out)
    assert [*tmp_path.parent.glob('*.onnx')] == [] and len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize('fault', ['extra', 'opset', 'check'])
def test_all_files_or_none(tool, folder, tmp_path, monkeypatch, fault):
    options, error, message = [], ValueError, fault
    if fault == 'extra':
        monkeypatch.setitem(sys.modules, 'onnx', None)
        message = r'pip install "mmmpq\[deploy\]"'
    elif fault == 'opset':
        options = ['--opset', '99']
        pytest.importorskip('onnx')
    else:
        options, error = ['--format', 'packed'], RuntimeError

        def changed(model, path, shape):
            assert path.is_file()
            raise RuntimeError('check')

        monkeypatch.setattr(tool, 'check_packed', changed)
    out = tmp_path / 'new' / 'x.safetensors'
    with pytest.raises(error, match=message):
        export(tool, folder, '--format', 'packed', 'onnx', '--out', str(out), *options)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ('out', 'stem'),
    [
        ('net_v1.2', 'net_v1.2'),
        ('net.onnx', 'net'),
        ('net.qonnx.onnx', 'net'),
        (None, 'epoch_3'),
    ],
)
def test_names_of_two_files(tool, out, stem):
    args = SimpleNamespace(out=out, checkpoint='epoch_3.pth', format=['onnx', 'packed'])
    found = {kind: str(path) for kind, path in tool.outputs(args).items()}
    assert found == dict(packed=f'{stem}.safetensors', onnx=f'{stem}.onnx')


@pytest.mark.parametrize('kind', ['packed', 'onnx'])
def test_endings(tool, folder, kind, capsys):
    with pytest.raises(SystemExit):
        export(tool, folder, '--format', kind, '--out', 'x.pth')
    assert f'{kind} files end in .' in capsys.readouterr().err


def test_no_checkpoint(tool, folder):
    with pytest.raises(FileNotFoundError, match=r'near names there: epoch_3\.pth'):
        export(tool, folder, '--format', 'packed', checkpoint='epoch_33.pth')


def test_a_search_is_no_net_to_export(tool, folder):
    cfg = (
        (folder / 'tiny.py')
        .read_text()
        .replace('dict(policy=', "dict(candidates=['W2A2', 'W4A4']) or dict(policy=")
    )
    (folder / 'search.py').write_text(cfg)
    with pytest.raises(ValueError, match=r'candidates of a search.*fine-tuning'):
        tool.main(
            [
                str(folder / 'search.py'),
                str(folder / 'epoch_3.pth'),
                '--format',
                'packed',
            ]
        )


def test_files_of_vendors(tool, folder, tmp_path, capsys):
    pytest.importorskip('onnx')
    out = tmp_path / 'net'
    with pytest.raises(
        ValueError, match=r'hailo: backbone.conv1: found W2A4; accepted'
    ):
        export(tool, folder, '--format', 'hailo', 'mct', '--out', str(out))
    assert not list(tmp_path.iterdir())
    flags = '--round-up', '--format', 'hailo', 'aimet', 'mct', '--out', str(out)
    export(tool, folder, *flags)
    assert {path.name for path in tmp_path.iterdir()} == {
        *('net.float.onnx', 'net.alls', 'net.encodings', 'net.mct.py', 'sizes.json')
    }
    said = capsys.readouterr().out
    assert 'folded 10 BatchNorms' in said
    assert 'mct: 11 layers are rounded up: backbone.conv1 (W2A4 as W2A8)' in said
    assert 'hailo: names are those' in said
