"""QONNX files: attributes, and outputs where its own executor is installed."""

import numpy as np
import pytest
import torch
from torch import nn

from mmmpq.costs import BOPs, WeightBytes, profile, total_cost
from mmmpq.export.fold import fold_batchnorm
from mmmpq.layers import calibrating, quantized_layers
from mmmpq.models import quantize
from mmmpq.policy import Policy, Precision

onnx = pytest.importorskip('onnx')

from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

from mmmpq.export.onnx.graph import export_qonnx  # noqa: E402
from mmmpq.export.onnx.qonnx import DOMAIN, quant_levels  # noqa: E402


class Quant(OpRun):
    """By the words of the paper, in single precision."""

    op_domain = DOMAIN

    def _run(self, x, scale, zero, bits, signed, narrow, rounding_mode):
        assert rounding_mode == 'ROUND'
        top = 2 ** (int(bits) - signed) - 1 - (narrow and not signed)
        least = -(2 ** (int(bits) - 1)) + narrow if signed else 0
        q = np.round(np.clip(x / scale + zero, least, top))
        return (((q - zero) * scale).astype(np.float32),)


class BipolarQuant(OpRun):
    op_domain = DOMAIN

    def _run(self, x, scale):
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


def by_the_words(path, x):
    model = onnx.load(path)
    return ReferenceEvaluator(model, new_ops=[Quant, BipolarQuant]).run(
        None, {'images': x.numpy()}
    )[0]


@pytest.fixture(autouse=True)
def version(monkeypatch):
    """qonnx 1.0 hands ONNX Runtime graphs of the newest version of the format."""
    monkeypatch.setattr(onnx, 'IR_VERSION', 10)


def by_qonnx(path, x):
    pytest.importorskip('qonnx')
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(str(path))
    model.set_tensor_shape('images', list(x.shape))
    model = model.transform(InferShapes())
    found = execute_onnx(model, {'images': x.numpy()})
    return next(iter(found.values()))


EXECUTORS = [by_the_words, by_qonnx]
QUANTIZERS = {
    'linear': dict(quantizer=dict(type='LinearQuantizer', per_channel=True)),
    'all levels': dict(quantizer=dict(type='LinearQuantizer', all_levels=True)),
    'lsq': dict(quantizer=dict(type='LSQQuantizer')),
    'gaussian': dict(quantizer=dict(type='GaussianQuantizer')),
    'plus': dict(quantizer=dict(type='LSQPlusQuantizer')),
    'dorefa': dict(
        w_quantizer=dict(type='DoReFaQuantizer'),
        a_quantizer=dict(type='PACTQuantizer'),
    ),
    'batch': dict(
        w_quantizer=dict(type='LSQQuantizer'), a_quantizer=dict(type='BatchQuantizer')
    ),
}


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Flatten()

    def extract_feat(self, x):
        return self.conv(x)


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('name', QUANTIZERS)
def test_every_quantizer_at_every_width(name, signed, executor, tmp_path):
    """To 1e-6 of the range: one layer, so that no sum decides on a level behind."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 6, 6)
    x = x if signed else x.abs()
    widths = []
    for bits in range(1, 9):
        try:
            quant = dict(policy=f'W{bits}A{bits}', **QUANTIZERS[name])
            model = quantize(OneLayer(), fixed={'*': None}, **quant).eval()
            with torch.no_grad(), calibrating(model):
                model.extract_feat(x)
        except ValueError:  # a quantizer that has no such width
            assert bits == 1
            continue
        if name == 'batch':
            model.conv.a_quantizer.set_statistics(torch.tensor([-2.0 * signed, 2.0]))
            model.conv.a_quantizer.shift.data.fill_(0.2)
        export_qonnx(model, tmp_path / 'x.qonnx.onnx', (3, 6, 6))
        with torch.no_grad():
            wanted = model.head(model.extract_feat(x)).numpy()
        found = executor(tmp_path / 'x.qonnx.onnx', x)
        assert np.abs(found - wanted).max() <= 1e-6 * np.ptp(wanted), bits
        widths.append(bits)
    assert widths[-7:] == [*range(2, 9)]


def test_attributes(classifier, settled, tmp_path):
    config = classifier(policy='W3A4', quantizer=dict(type='LSQQuantizer'))
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    report = export_qonnx(model, tmp_path / 'x.qonnx.onnx', (3, 32, 32))
    layers = quantized_layers(model)
    assert report['nodes']['Quant'] == 2 * len(layers)
    graph = onnx.load(tmp_path / 'x.qonnx.onnx')
    assert DOMAIN in {o.domain for o in graph.opset_import}
    stored = {
        t.name: onnx.numpy_helper.to_array(t).copy() for t in graph.graph.initializer
    }
    nodes = {n.output[0].split('/')[0]: n for n in graph.graph.node if n.domain}
    node = nodes['backbone.layer1.0.conv1.weight']
    of = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert of == dict(signed=1, narrow=0, rounding_mode=b'ROUND')
    scale, zero, bits = (stored[name] for name in node.input[1:])
    assert scale.shape == zero.shape == (8, 1, 1, 1) and bits == 3
    q = stored[node.input[0]] / scale
    np.testing.assert_allclose(q, q.round(), atol=1e-5)
    node = nodes['backbone.layer1.0.conv2.input']
    of = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert of == dict(signed=0, narrow=0, rounding_mode=b'ROUND')
    assert stored[node.input[3]] == 4 and stored[node.input[2]] == 0


def test_one_bit_is_bipolar(tmp_path):
    model = quantize(
        OneLayer(), policy='W1A4', fixed={'*': None}, **QUANTIZERS['dorefa']
    ).eval()
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad(), calibrating(model):
        wanted = model.head(model.extract_feat(x)).numpy()
    with torch.no_grad():
        wanted = model.head(model.extract_feat(x)).numpy()
    nodes = export_qonnx(model, tmp_path / 'x.qonnx.onnx', (3, 6, 6))['nodes']
    assert nodes['BipolarQuant'] == 1 and nodes['Quant'] == 1
    np.testing.assert_allclose(
        by_the_words(tmp_path / 'x.qonnx.onnx', x), wanted, atol=1e-6
    )


@pytest.mark.parametrize('bits', range(2, 9))
def test_levels(bits):
    top = 2 ** (bits - 1)
    assert quant_levels(bits, -top, top - 1) == (True, False, 0)
    assert quant_levels(bits, 1 - top, top - 1) == (True, True, 0)
    assert quant_levels(bits, 0, 2 * top - 1) == (False, False, 0)
    assert quant_levels(bits, 0, 2 * top - 2) == (False, True, 0)
    assert quant_levels(bits, 1 - top, top) == (True, False, 1)
    with pytest.raises(ValueError, match=f'{bits} bits with the levels 0 to {4 * top}'):
        quant_levels(bits, 0, 4 * top)


def test_qonnx_counts_as_we_do(classifier, settled, tmp_path):
    """MACs, BOPs and bits of weights of another's program."""
    pytest.importorskip('qonnx')
    from qonnx.util.inference_cost import inference_cost

    config = classifier(fixed={'*': None})  # around 0, which the program wants
    names = list(quantized_layers(settled(config)))
    config.model.quant.policy = Policy(
        {n: Precision(2 + i % 7, 2 + (3 * i) % 7) for i, n in enumerate(names)}
    )
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    export_qonnx(model, tmp_path / 'x.qonnx.onnx', (3, 32, 32))
    graph = onnx.load(tmp_path / 'x.qonnx.onnx')
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, tmp_path / 'one.onnx')
    found = inference_cost(str(tmp_path / 'one.onnx'), discount_sparsity=False)
    found = found.get('total_cost', found)
    profiles = profile(model, (3, 32, 32))
    policy = {n: m.precision for n, m in quantized_layers(model).items()}
    macs = sum(v for k, v in found.items() if k.startswith('op_mac'))
    assert macs == sum(layer.macs for layer in profiles)
    assert found['total_bops'] == total_cost(BOPs(), profiles, policy)
    wanted = 8 * total_cost(WeightBytes(), profiles, policy)
    assert found['total_mem_w_bits'] == wanted
