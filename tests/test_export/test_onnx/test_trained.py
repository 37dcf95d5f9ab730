"""Tensors between layers that are quantized in training, and the file of such a net."""

import copy
import io

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.onnx import cut
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import calibrating, float_mode, quantized_layers
from mmmpq.models import calibrate, quantize
from mmmpq.models.loading import load_whole
from mmmpq.policy import Policy, Precision
from mmmpq.registry import FINDERS

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmmpq.export import extras  # noqa: E402
from mmmpq.export.latency.bench import Session  # noqa: E402
from mmmpq.export.onnx.graph import export_onnx, traced  # noqa: E402
from mmmpq.export.onnx.model import sums_are_cut  # noqa: E402
from mmmpq.export.onnx.wires import Wires  # noqa: E402

WIDTHS = {'W8A8': ['W8A8'], 'W4A4': ['W4A4'], 'mixed': ['W4A4', 'W8A8', 'W3A2', 'W6A5']}


def images(size=32, count=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator)


@pytest.fixture
def trained(classifier, settled):
    """A ResNet as if trained with a target; ``widths`` in turn over its layers."""

    def make(target='onnxruntime', widths='W8A8', **quant):
        config = classifier(fixed={'*': None}, policy='W8A8', **quant)
        names = list(quantized_layers(settled(config)))
        precisions = [Precision.parse(p) for p in WIDTHS.get(widths, [widths])]
        config.model.quant.policy = Policy(
            {n: precisions[i % len(precisions)] for i, n in enumerate(names)}
        )
        torch.manual_seed(0)
        return settled(config if target is None else classifier_at(config, target))

    def classifier_at(config, target):
        config = copy.deepcopy(config)
        config.model.quant.target = target
        return config

    return make


def export(model, path, size=32, **options):
    """Without images: there is no range to be measured."""
    return export_onnx(model, path, (3, size, size), vnni=not sums_are_cut(), **options)


@pytest.fixture
def values_of(tensors_of):
    """What a file, computed node by node, has in float tensors."""

    def compute(path, names, x):
        found = tensors_of(path, names, x.numpy(), 'ORT_DISABLE_ALL')
        return {name: torch.from_numpy(values) for name, values in found.items()}

    return compute


def without_islands(model):
    model = copy.deepcopy(model)
    for island in model.islands.values():
        island.forward = lambda x: x
    return model


@torch.no_grad()
def outputs(model, x):
    return cut.leaves(cut.network(model, x))


def check_tensors(model, path, size, values_of):
    """Behind every tensor that the file rounds stands the island's own quantizer."""
    _, _, marks = traced(model, (3, size, size), 18, '8bit')
    nodes = onnx.load(path).graph.node
    pairs = {}
    for tensor, (key, *_) in marks.items():
        q, back = (
            next(n for n in nodes if n.name.startswith(f'{tensor}/{kind}Linear'))
            for kind in ('Quantize', 'Dequantize')
        )
        pairs[key] = q.input[0], back.output[0]
    assert pairs.keys() == dict(model.islands).keys()
    names = [name for pair in pairs.values() for name in pair]
    values = values_of(path, list(dict.fromkeys(names)), images(size))
    for key, (made, back) in pairs.items():
        with torch.no_grad():
            wanted = model.islands[key](values[made].clone())
        off = (values[back] - wanted).abs() > 1e-5 * wanted.abs().max()
        assert off.sum() <= 2, key  # that lie in the middle between two levels


@pytest.mark.parametrize('widths', WIDTHS)
@pytest.mark.parametrize('target', ['onnxruntime', 'openvino', 'generic'])
def test_a_file_is_what_was_trained(target, widths, trained, tmp_path, values_of):
    model = trained(target, widths)
    x = images()
    (before,) = outputs(model, x)
    assert fold_batchnorm(model, (3, 32, 32)).largest < 1e-5
    (wanted,) = outputs(model, x)
    assert (wanted - before).norm() < 1e-2 * before.norm()
    report = export(model, tmp_path / 'net.onnx')['islands']
    assert report['trained'] == len(model.islands) > 8
    assert report['shared'] == [] and report['open'] == []
    check_tensors(model, tmp_path / 'net.onnx', 32, values_of)
    found = values_of(tmp_path / 'net.onnx', ['cls_score'], x)['cls_score']
    rows = (found - wanted).abs().amax(1) > 1e-4 * wanted.abs().max()
    assert rows.float().mean() < 0.3  # of images where a value lies between two levels
    assert (found - wanted).norm() < 2e-2 * wanted.norm()


def test_signed_files(trained, tmp_path, values_of):
    model = trained('tensorrt', 'W8A7')
    fold_batchnorm(model, (3, 32, 32))
    export(model, tmp_path / 'net.onnx')
    check_tensors(model, tmp_path / 'net.onnx', 32, values_of)
    wires = Wires(onnx.load(tmp_path / 'net.onnx').graph)
    points = [wires.constant(n.input[2]) for n in wires.maker.values()
              if n.op_type == 'QuantizeLinear']  # fmt: skip
    assert all(p.dtype == np.int8 and not p.any() for p in points)


def test_layers_of_8_bits_read_the_tensor(trained, tmp_path):
    """By one quantizer, and the file has no more than one of them."""
    model = trained()
    layers = quantized_layers(model)
    one, other = 'backbone.layer2.0.conv1', 'backbone.layer2.0.downsample.0'
    assert layers[one].a_quantizer is layers[other].a_quantizer
    assert layers[one].a_quantizer.levels(8) == (0, 255)
    fold_batchnorm(model, (3, 32, 32))
    report = export(model, tmp_path / 'net.onnx')
    assert report['islands']['requantized'] == []
    found = Session(tmp_path / 'net.onnx', 1).ops
    assert found['QLinearAdd'] == 4 and found['QuantizeLinear'] == 1


def retinanet(policy, **quant):
    cfg = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    init_default_scope('mmdet')
    small = dict(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    head = dict(in_channels=32, feat_channels=32, stacked_convs=1)
    neck = dict(in_channels=[8, 16, 32, 64], out_channels=32)
    cfg.merge_from_dict(dict(model=dict(backbone=small, neck=neck, bbox_head=head)))
    model = MODELS.build(cfg.model).eval()
    return quantize(model, policy=policy, fixed={'*': None}, **quant)


@pytest.mark.parametrize('policy', ['W8A8', 'W4A4'])
def test_a_retinanet(policy, tmp_path, values_of):
    """Sums and what is resized in the FPN, and a head that is called for each level."""
    model = retinanet(policy, target='onnxruntime')
    with torch.no_grad(), calibrating(model):
        cut.network(model, images(64))
    places = model.islands.key_of
    assert {f'bbox_head.retina_cls[{i}]' for i in range(5)} <= places.keys()
    assert {'neck.lateral_convs.0.conv[0]', 'backbone.layer4.0.relu[1]'} <= set(places)
    x = images(96)
    wanted = outputs(model, x)
    with torch.no_grad():  # the head's forward, and not its call
        assert all(map(torch.equal, cut.leaves(model(x)), wanted))
    fold_batchnorm(model, (3, 64, 64))
    wanted = outputs(model, x)
    report = export(model, tmp_path / 'net.onnx', 64)['islands']
    assert report['trained'] == len(model.islands) and report['open'] == []
    check_tensors(model, tmp_path / 'net.onnx', 64, values_of)
    names = [o.name for o in onnx.load(tmp_path / 'net.onnx').graph.output]
    found = values_of(tmp_path / 'net.onnx', names, x).values()
    plain = outputs(without_islands(model), x)
    for one, other, without in zip(found, wanted, plain, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()
        assert (without - other).norm() > 0


# ------------------------------------------------------------------------- training


def samples(count=8):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(i % 4) for i in range(count)]


def loss_of(model):
    return model(images(), samples(), mode='loss')['loss']


def test_every_range_learns(trained):
    model = trained().train()
    loss_of(model).backward()
    for key, island in model.islands.items():
        assert island.a_quantizer.range.grad.abs().sum() > 0, key
    trained_ones = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained_ones)  # for DDP


def test_the_gradient_of_a_range(trained):
    """Of clipped values, by finite differences: they are the grid's end."""
    model = trained().eval()
    island = model.islands['backbone/layer2/1/relu[1]']
    quantizer = island.own_quantizer
    x = images().abs() * 100
    inside = (x / quantizer.scales(x, (8,))[0]).round() <= 255
    assert inside.float().mean() < 0.1
    island(x[~inside]).sum().backward()
    found = quantizer.range.grad / quantizer.scale_grad(x[~inside], 8)
    step = 2**-8
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            quantizer.range.add_(sign * step)
            sums.append(island(x[~inside]).double().sum())
            quantizer.range.sub_(sign * step)
    wanted = (sums[0] - sums[1]) / (2 * step)
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


def test_calibration_fits_every_range(classifier):
    config = classifier(policy='W8A8', target='onnxruntime')
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(config.model, data_preprocessor=config.data_preprocessor))
    assert not any(i.a_quantizer.calibrated for i in model.islands.values())
    pixels = (images() * 60 + 127).clamp(0, 255)
    calibrate(model, [dict(inputs=list(pixels), data_samples=samples())])
    assert all(i.a_quantizer.calibrated for i in model.islands.values())
    assert model.islands['backbone/layer1/0/bn2[0]'].a_quantizer.signed == 1
    assert model.islands['backbone/layer1/0/relu[1]'].a_quantizer.signed == 0


def test_a_state_dict_goes_there_and_back(trained):
    model, other = trained(), trained()
    with torch.no_grad():
        for param in model.islands.parameters():
            param.mul_(0.7)
    assert not torch.equal(*outputs(model, images()), *outputs(other, images()))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    load_whole(other, dict(state_dict=torch.load(file, weights_only=True)), 'net.pth')
    assert torch.equal(*outputs(model, images()), *outputs(other, images()))


def test_a_copy_has_ranges_of_its_own(trained):
    model = trained()
    twin = copy.deepcopy(model)
    before = outputs(model, images())
    with torch.no_grad():
        for island in twin.islands.values():
            island.a_quantizer.range.mul_(0.3)
    assert all(map(torch.equal, outputs(model, images()), before))
    assert not torch.equal(*outputs(twin, images()), *before)


def test_norms_that_are_replaced(trained):
    """As for training on several GPUs; what stands behind them goes on."""
    model = trained()
    twin = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(twin.eval()(images()), model(images()))


def test_float_mode_and_half_precision(trained):
    model, plain = trained(), trained(None)
    with float_mode(model), float_mode(plain):
        assert torch.equal(*outputs(model, images()), *outputs(plain, images()))
    with torch.autocast('cpu', torch.bfloat16):
        assert loss_of(model.train()).isfinite()


def test_a_forward_that_fails_leaves_nothing_behind(trained):
    model = trained()
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 5, 8, 8))
    assert model.islands.watch.frames == []
    assert outputs(model, images())[0].shape == (8, 4)


def test_without_a_target_nothing_changes(trained):
    model = trained(None)
    assert not hasattr(model, 'islands')
    assert not any('islands' in name for name in model.state_dict())
    assert not any(m._forward_hooks for m in model.backbone.layer1.modules())


def test_a_search_leaves_them_out(classifier, settled):
    config = classifier(policy=None, candidates=['W4A4', 'W8A8'], target='openvino')
    assert not hasattr(settled(config), 'islands')


# --------------------------------------------------------------------- what is refused


def test_targets_that_do_not_exist(classifier, settled):
    for quant in (dict(), dict(policy=None, candidates=['W4A4', 'W8A8'])):
        config = classifier(target='onxruntime', **quant)
        message = "quant.target: found 'onxruntime'; accepted are generic, onnxruntime"
        with pytest.raises(ValueError, match=message):
            settled(config)


def test_a_missing_extra(classifier, settled, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, 'import_module', missing)
    message = r'quant.target: ONNX: the package onnx is .* "mmmpq\[deploy\]"'
    with pytest.raises(ValueError, match=message):
        settled(classifier(target='onnxruntime'))


def test_another_target_and_no_folding(trained, tmp_path):
    model = trained()
    message = "target: found 'openvino' for a net that was trained with quant.target="
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / 'net.onnx', target='openvino')
    message = r'trained with quant.target at backbone/.*; accepted is .* folded'
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_net(trained):
    one, other = trained(), trained(None)
    for model, state, message in (
        (one, other, 'trained without quant.target'),
        (other, one, 'was trained with quant.target'),
    ):
        with pytest.raises(ValueError, match=message):
            load_whole(model, dict(state_dict=state.state_dict()), 'net.pth')


def test_what_is_computed_twice(classifier, settled):
    config = classifier(policy='W8A8', target='onnxruntime')
    config.model.backbone.with_cp = True
    model = settled(config).train()
    x = images().requires_grad_()
    loss = model(x, samples(), mode='loss')['loss']
    with pytest.raises(RuntimeError, match='with_cp=False'):
        loss.backward()


def test_a_packed_file_holds_them(trained, classifier, tmp_path, monkeypatch):
    """And where they stand, so that it is read without ONNX."""
    model = trained()
    config = classifier(policy='W8A8', fixed={'*': None}, target='onnxruntime')
    save_packed(model, tmp_path / 'net.safetensors', config)
    monkeypatch.setitem(FINDERS.module_dict, 'islands', None)
    other = load_packed(tmp_path / 'net.safetensors')
    assert other.islands.key_of == model.islands.key_of
    assert torch.equal(*outputs(model, images()), *outputs(other, images()))
