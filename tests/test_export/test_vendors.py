"""Files of vendors: by their documented formats, and by their parsers where these are
installed."""

import importlib.util
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from mmmpq.cli.flags.export import NAME_TENSORS, OURS, SUFFIX
from mmmpq.costs.hardware import PROFILES
from mmmpq.export.fold import fold_batchnorm
from mmmpq.layers import quantized_layers
from mmmpq.layers.base import float_mode
from mmmpq.policy import Policy, Precision

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from onnx.reference import ReferenceEvaluator  # noqa: E402

from mmmpq.export.vendors.write import GRAPH, export_vendors, formats  # noqa: E402

SHAPE = 3, 32, 32
NAMES = {
    kind: f'net.{kind}' for kind in ('float', 'aimet', 'hailo', 'rknn', 'mct', 'coreml')
}


@pytest.fixture
def write(classifier, settled, tmp_path):
    """A net of precisions that take turns, folded; its files and the notes."""

    def make(*precisions, kinds=('float', 'aimet'), round_up=False, **quant):
        names = list(quantized_layers(settled(classifier(policy='W8A8', **quant))))
        layers = {
            name: Precision.parse(precisions[i % len(precisions)])
            for i, name in enumerate(names)
        }
        policy = Policy(layers).save(tmp_path / 'policy.json')
        net = settled(classifier(policy=str(policy), **quant))
        fold_batchnorm(net, SHAPE)
        paths = {kind: tmp_path / NAMES[kind] for kind in kinds}
        return net, paths, export_vendors(net, paths, SHAPE, round_up=round_up)

    return make


def levels(entry, values):
    """What AIMET's formula makes of numbers."""
    scale, offset = (np.array(entry[key]) for key in ('scale', 'offset'))
    shape = (-1, *[1] * (values.ndim - 1)) if scale.size > 1 else ()
    scale, offset = scale.reshape(shape), offset.reshape(shape)
    offset = offset + np.array(entry.get('zero_point_shift', 0)).reshape(shape or ())
    q = np.clip(np.round(values / scale - offset), 0, 2 ** entry['bw'] - 1)
    return scale * (q + offset)


def read(paths):
    """The graph, and AIMET's entries by the name of their tensor."""
    graph = onnx.load(paths['float'])
    found = json.loads(paths['aimet'].read_text())
    assert found['version'] == '1.0.0'
    params, activations = (
        {entry['name']: entry for entry in found[f'{kind}_encodings']}
        for kind in ('param', 'activation')
    )
    return graph, params, activations


@pytest.mark.parametrize('quantizer', ['LinearQuantizer', 'LSQPlusQuantizer'])
def test_aimet_has_the_levels_of_the_net(write, quantizer):
    net, paths, _ = write('W8A8', 'W8A16', 'W4A16', quantizer=dict(type=quantizer))
    graph, params, activations = read(paths)
    layers = quantized_layers(net)
    assert {f'{name}.weight' for name in layers} == set(params)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    for name, layer in layers.items():
        entry, weight = params[f'{name}.weight'], stored[f'{name}.weight']
        assert entry['bw'] == layer.precision.w_bits and entry['dtype'] == 'INT'
        wanted = layer.w_quantizer(layer._latent_weight(), entry['bw']).detach().numpy()
        np.testing.assert_array_equal(weight, wanted)
        np.testing.assert_allclose(levels(entry, weight), weight, atol=1e-6)
    first = layers['backbone.conv1']
    entry = activations['images']
    low, high = first.a_quantizer.levels(8)
    scale = entry['scale'][0]
    x = torch.rand(1000) * 1.2 * scale * (high - low) + 1.2 * scale * low
    wanted = first.a_quantizer(x, 8).detach().numpy()
    inside = (x > scale * low).numpy()  # AIMET has one level more there
    np.testing.assert_allclose(levels(entry, x.numpy())[inside], wanted[inside], 1e-5)
    assert entry['is_sym'] == (entry['offset'] == [-128])


def test_the_float_graph_computes_what_the_layers_do_on_float_inputs(write):
    net, paths, _ = write('W8A8', 'W4A16')
    images = torch.randn(2, *SHAPE)
    (found,) = ReferenceEvaluator(str(paths['float'])).run(
        None, {'images': images.numpy()}
    )
    for layer in quantized_layers(net).values():
        quantized = layer.w_quantizer(layer._latent_weight(), layer.precision.w_bits)
        layer.weight.data.copy_(quantized)
    with float_mode(net), torch.no_grad():
        wanted = net(images)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    kinds = [node.op_type for node in onnx.load(paths['float']).graph.node]
    assert kinds.count('Conv') == 10 and 'BatchNormalization' not in kinds


def test_a_tensor_has_the_encoding_of_the_most_bits(write):
    net, paths, notes = write('W8A16', 'W8A8', 'W8A8', 'W8A16', 'W8A8')
    _, _, activations = read(paths)
    layers = quantized_layers(net)
    pair = ['backbone.layer2.0.conv1', 'backbone.layer2.0.downsample.0']
    bits = {layers[name].precision.a_bits for name in pair}
    assert bits == {8, 16}
    (shared,) = [
        entry
        for name, entry in activations.items()
        if name.endswith('layer1.1/relu_1/Relu_output_0')
    ]
    assert shared['bw'] == 16
    (told,) = notes
    assert told.startswith('aimet: backbone.layer2.0.') and 'one for a tensor' in told


def test_a_precision_that_a_vendor_lacks(write, tmp_path):
    with pytest.raises(ValueError) as error:
        write('W3A4')
    assert str(error.value) == (
        'aimet: backbone.conv1: found W3A4; accepted for Conv2d are W8A8, W4A16, '
        'W8A16, W32A32; --round-up makes it W8A8'
    )
    assert not [p for p in tmp_path.iterdir() if p.name != 'policy.json']
    with pytest.raises(ValueError, match=r'mct: .*W8A16; .* W2A8, W4A8, W8A8$'):
        write('W8A16', kinds=['mct'], round_up=True)


def test_rounding_up_keeps_weights_and_ranges(write):
    net, paths, notes = write('W3A4', round_up=True)
    _, params, activations = read(paths)
    assert notes[0].startswith('aimet: 11 layers are rounded up: backbone.conv1 (W3A4')
    layer = quantized_layers(net)['backbone.layer1.0.conv2']
    entry = params['backbone.layer1.0.conv2.weight']
    weight = layer.w_quantizer(layer._latent_weight(), 3).detach().numpy()
    np.testing.assert_allclose(levels(entry, weight), weight, atol=1e-6)
    (entry,) = [e for n, e in activations.items() if 'layer1.0/relu/' in n]
    scale = layer.a_quantizer.grids(layer.weight, (4,))[0].item()
    assert entry['bw'] == 8 and entry['offset'] == [0]
    assert 255 * entry['scale'][0] == pytest.approx(15 * scale)


def test_layers_that_the_net_leaves_float_are_told(write):
    kinds = list(formats())
    _, _, notes = write('W8A8', kinds=['float', *kinds], exclude=['head.fc'])
    told = {note.split(':')[0] for note in notes if 'head.fc: left float' in note}
    assert told == {*kinds} - {'coreml'}  # its recipe quantizes nothing else


def test_weights_around_another_number_are_told(write):
    _, paths, notes = write('W8A8', quantizer=dict(type='GaussianQuantizer'))
    (told,) = notes
    assert told.startswith('aimet: backbone.conv1.weight, ') and 'symmetric' in told
    _, params, _ = read(paths)
    assert not any(entry['is_sym'] for entry in params.values())
    assert write('W8A8')[-1] == []


def test_the_command_knows_the_formats():
    known = formats()
    assert {*known, GRAPH} == {*SUFFIX} - {*OURS}
    assert {k for k, found in known.items() if found.names_tensors} == NAME_TENSORS
    assert {found.profile for found in known.values()} <= {*PROFILES}


def test_hailo(write):
    _, paths, _ = write('W8A8', 'W4A8', 'W8A16', kinds=['hailo'])
    *comments, four, sixteen = paths['hailo'].read_text().splitlines()
    assert comments[0] == '# backbone.conv1 is conv1'
    assert comments[-1] == '# head.fc is fc1'
    assert four == (
        'quantization_param([conv2, conv5, conv8, fc1], precision_mode=a8_w4)'
    )
    assert sixteen == (
        'quantization_param([conv3, conv6, conv9], precision_mode=a16_w16)'
    )


def test_hailo_knows_depthwise_and_transposed_layers():
    from mmmpq.export.vendors.hailo import _kind

    class Graph:
        model = onnx.ModelProto()

    weight = np.zeros((4, 1, 3, 3), np.float32)
    Graph.model.graph.initializer.append(onnx.numpy_helper.from_array(weight, 'w'))
    node = onnx.helper.make_node
    assert _kind(node('Conv', ['x', 'w'], ['y'], group=4), Graph) == 'dw'
    assert _kind(node('Conv', ['x', 'w'], ['y']), Graph) == 'conv'
    assert _kind(node('ConvTranspose', ['x', 'w'], ['y']), Graph) == 'deconv'
    assert _kind(node('Relu', ['x'], ['y']), Graph) == ''


def test_rknn(write):
    _, paths, _ = write('W8A8', 'W32A32', 'W8A16', kinds=['rknn', 'float'])
    found = yaml.safe_load(paths['rknn'].read_text())['custom_quantize_layers']
    outputs = {o for node in onnx.load(paths['float']).graph.node for o in node.output}
    assert set(found) <= outputs
    assert list(found.values()).count('float16') == 4
    assert list(found.values()).count('int16') == 3


class Recorder:
    """What MCT's BitWidthConfig is told."""

    def __init__(self):
        self.told = []

    def set_manual_weights_bit_width(self, node, bits, attr):
        self.told.append((node, bits, attr))


def loaded(path):
    """A written module of Python."""
    spec = importlib.util.spec_from_file_location('bits', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mct(write, monkeypatch, tmp_path):
    _, paths, _ = write('W8A8', 'W4A8', 'W2A8', kinds=['mct'])
    path = paths['mct'].rename(tmp_path / 'bits.py')
    names = (
        'model_compression_toolkit',
        'model_compression_toolkit.core',
        'model_compression_toolkit.core.common',
        'model_compression_toolkit.core.common.network_editors',
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[1]].BitWidthConfig = Recorder
    sys.modules[names[3]].NodeNameFilter = lambda name: {name}
    told = loaded(path).make('net_').told
    assert told[1] == (
        {'net_backbone_layer1_0_conv1', 'net_backbone_layer1_0_conv1_bn'},
        4,
        'weight',
    )
    assert [bits for _, bits, _ in told[:3]] == [8, 4, 2] and len(told) == 11


def test_coreml(write):
    _, paths, _ = write('W4A8', 'W32A32', 'W8A32', kinds=['coreml'])
    found = yaml.safe_load(paths['coreml'].read_text())
    assert set(found) == {'global_config', 'module_name_configs'}
    modules = found['module_name_configs']
    assert len(modules) == 7 and 'backbone.layer1.0.conv1' not in modules
    assert modules['backbone.conv1'] == dict(
        weight_dtype='qint4', activation_dtype='quint8'
    )
    assert modules['backbone.layer1.0.conv2']['activation_dtype'] == 'float32'


def test_aimet_reads_its_file(write):
    quantsim = pytest.importorskip('aimet_onnx.quantsim')
    _, paths, _ = write('W8A8')
    sim = quantsim.QuantizationSimModel(onnx.load(paths['float']))
    quantsim.load_encodings_to_sim(sim, str(paths['aimet']), strict=False)
    enabled = {n for n, q in sim.qc_quantize_op_dict.items() if q.enabled}
    _, params, activations = read(paths)
    assert enabled == {*params, *activations}


def test_mct_reads_its_file(write, tmp_path):
    core = pytest.importorskip('model_compression_toolkit.core')
    _, paths, _ = write('W4A8', kinds=['mct'])
    found = loaded(paths['mct'].rename(tmp_path / 'bits.py')).make()
    assert isinstance(found, core.BitWidthConfig)
    assert len(found.manual_weights_bit_width_selection_list) == 11


def test_coremltools_reads_its_file(write):
    torch_part = pytest.importorskip('coremltools.optimize.torch.quantization')
    _, paths, _ = write('W4A8', 'W8A32', kinds=['coreml'])
    found = torch_part.LinearQuantizerConfig.from_yaml(str(paths['coreml']))
    first = found.module_name_configs['backbone.conv1']
    assert first.weight_n_bits == 4 and first.activation_dtype == torch.quint8
