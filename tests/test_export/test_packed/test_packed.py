"""A packed checkpoint restores the very same net, or says what is wrong with it."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import mmmpq
from mmmpq.export.integers import weight_integers
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.export.packed.config import from_json, rebuildable, to_json
from mmmpq.export.packed.file import read_packed
from mmmpq.export.packed.untrusted import check_types
from mmmpq.layers import QuantConv2d, QuantLayer, quantized_layers
from mmmpq.policy import SKIP, Policy, Precision

ROOT = Path(__file__).parents[3]
QUANTIZERS = {
    'learned': dict(),
    'per channel': dict(quantizer=dict(type='LinearQuantizer', per_channel=True)),
    'scale_clip': dict(quantizer=dict(type='LinearQuantizer', range='scale_clip')),
    'lsq': dict(quantizer=dict(type='LSQQuantizer')),
    'gaussian': dict(quantizer=dict(type='GaussianQuantizer')),
    'plus': dict(quantizer=dict(type='LSQPlusQuantizer')),
    'dorefa': dict(
        w_quantizer=dict(type='DoReFaQuantizer', rescale=True),
        a_quantizer=dict(type='PACTQuantizer'),
    ),
}


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def build(config):
    init_default_scope(config.default_scope)
    return MODELS.build(
        dict(config.model, data_preprocessor=config.get('data_preprocessor'))
    )


@pytest.fixture
def file(tmp_path, classifier, settled):
    return save_packed(settled(classifier()), tmp_path / 'x.safetensors', classifier())


@pytest.mark.parametrize('name', QUANTIZERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_outputs_are_the_same_bit_for_bit(
    name, dtype, tmp_path, classifier, settled, outputs
):
    config = classifier(**QUANTIZERS[name])
    net = settled(config).to(dtype)
    loaded = load_packed(save_packed(net, tmp_path / 'x.safetensors', config))
    assert type(loaded) is type(net) and not loaded.training
    assert equal(outputs(loaded), outputs(net))
    again = load_packed(save_packed(loaded, tmp_path / 'y.safetensors', config))
    assert equal(outputs(again), outputs(net))
    for layer, twin in zip(
        quantized_layers(net).values(), quantized_layers(loaded).values(), strict=True
    ):
        for a, b in zip(weight_integers(layer), weight_integers(twin), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    state, found = net.state_dict(), loaded.state_dict()
    kept = [k for k in state if 'w_quantizer' not in k and not k.endswith('weight')]
    assert kept and equal([state[k] for k in kept], [found[k] for k in kept])
    assert all(state[k].dtype == found[k].dtype for k in kept)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 8),
    st.tuples(*[st.integers(1, n) for n in (9, 5, 4, 3)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_width_and_shape(tmp_path_factory, bits, shape, per_channel, dtype):
    outs, ins, *kernel = shape
    quantizer = dict(type='LSQQuantizer', per_channel=per_channel)
    layer = QuantConv2d(ins, outs, kernel, w_bits=bits, a_bits=8, w_quantizer=quantizer)
    layer.calibrate([torch.randn(9)])
    layer = layer.to(dtype).eval()
    file = tmp_path_factory.getbasetemp() / 'shapes.safetensors'
    packed = read_packed(save_packed(nn.Sequential(layer), file, dict(model={})))
    most = -(-layer.weight.numel() * bits // 8)
    smaller = 'coding' in packed.index['weights']['0']
    stored = packed.tensors['0.weight'].numel()
    assert stored < most if smaller else stored == most
    state = packed.state_dict()
    assert torch.equal(state['0.weight'], layer.w_quantizer(layer.weight, bits))
    assert torch.equal(state['0.bias'], layer.bias)
    assert state['0.weight'].dtype == state['0.bias'].dtype == dtype


def test_every_width_beside_every_other_and_float(
    tmp_path, classifier, settled, outputs
):
    names = list(quantized_layers(settled(classifier())))
    widths = [(2, 8), (3, 7), (4, 6), (5, 5), (6, 4), (7, 3), (8, 2), (32, 32), (4, 32)]
    widths += [(32, 4), (8, 16)]
    layers = {n: Precision(*p) for n, p in zip(names, widths, strict=True)}
    path = Policy(layers, dict(seed=3, costs=dict(float=dict(bops=7.0)))).save(
        tmp_path / 'policy.json'
    )
    config = classifier(policy=str(path))
    net = settled(config)
    meta = Policy.load(path).meta
    seen = dict(classes=('a', 'b'))
    file = save_packed(net, tmp_path / 'x.safetensors', config, meta, seen)
    path.unlink()  # no other file is needed
    assert equal(outputs(load_packed(file)), outputs(net))
    packed = read_packed(file)
    assert packed.policy.layers == layers
    assert packed.policy.meta == meta and packed.dataset_meta == seen
    for name, (bits, _) in layers.items():
        found = packed.tensors.get(f'{name}.weight')
        weights = net.get_submodule(name).weight.numel()
        assert found is None if bits == 32 else len(found) == -(-weights * bits // 8)


def test_a_skipped_block_takes_no_weights(tmp_path, classifier, settled, outputs):
    names = list(quantized_layers(settled(classifier())))
    layers = {n: SKIP if 'layer1.1' in n else Precision(4, 4) for n in names}
    path = Policy(layers).save(tmp_path / 'policy.json')
    config = classifier(policy=str(path))
    net = settled(config)
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    assert equal(outputs(load_packed(file)), outputs(net))
    weights = [n for n in read_packed(file).tensors if n.endswith('.weight')]
    assert len(weights) == len(names) - 2


@pytest.fixture
def rtmdet():
    """A detector whose head shares its convolutions over three levels."""
    config = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    config.model.update(
        type='mmmpq.QuantModel', base_type='RTMDet', quant=dict(policy='W4A4')
    )
    config.model.backbone.update(widen_factor=0.125, init_cfg=None)
    config.model.neck.update(in_channels=[32, 64, 128], out_channels=16)
    config.model.bbox_head.update(in_channels=16, feat_channels=16, num_classes=3)
    return config


def test_a_subnet_brings_its_architecture_along(tmp_path, classifier):
    config = classifier()
    genes = {'stage1.depth': 2, 'resolution': 128}
    policy = Policy({'x': Precision(4, 4)}, dict(architecture=genes))
    config.model.backbone.architecture = str(policy.save(tmp_path / 'policy.json'))
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x')
    found = from_json(to_json(rebuildable(config)))
    assert found['model']['backbone']['architecture'] == genes
    assert found['model']['backbone']['strides'] == (1, 2)  # still a tuple
    assert found['model']['data_preprocessor'] == config.data_preprocessor
    assert 'init_cfg' not in found['model']['backbone']
    assert found['model']['quant'] == {} and found['default_scope'] == 'mmpretrain'


def test_a_config_without_json(classifier):
    config = classifier()
    config.model.odd = object()
    with pytest.raises(ValueError, match=r'cannot be written as JSON.*numbers, texts'):
        to_json(rebuildable(config))


def test_shared_modules_are_stored_once(tmp_path, rtmdet, settled, outputs):
    net = settled(rtmdet, 64)
    first, other = (net.bbox_head.cls_convs[i][0].conv for i in (0, 1))
    assert first is other
    file = save_packed(net, tmp_path / 'x.safetensors', rtmdet)
    loaded = load_packed(file)
    first, other = (loaded.bbox_head.cls_convs[i][0].conv for i in (0, 1))
    assert first is other
    assert equal(outputs(loaded, 64), outputs(net, 64))
    packed = read_packed(file)
    assert packed.index['aliases']['bbox_head.cls_convs.1.0.conv'] == (
        'bbox_head.cls_convs.0.0.conv'
    )
    names = [n for n in packed.tensors if 'bbox_head.cls_convs' in n]
    assert names and not [n for n in names if 'cls_convs.0.' not in n]
    assert set(packed.state_dict()) == set(loaded.state_dict())


@pytest.mark.parametrize('name', ['scale_clip', 'dorefa'])
def test_load_from_in_a_config(
    name, tmp_path, classifier, settled, outputs, monkeypatch
):
    config = classifier(**QUANTIZERS[name])
    net = settled(config)
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    runner = Runner(
        **config.to_dict(),
        work_dir=str(tmp_path),
        load_from=str(file),
        experiment_name=name,
        default_hooks=dict(logger=None),
    )
    for where in (torch, pickle):
        monkeypatch.setattr(where, 'load', None)  # nothing reads a pickle
    monkeypatch.setattr(pickle, 'Unpickler', None)
    runner.load_or_resume()
    assert equal(outputs(runner.model.eval()), outputs(net))
    model = build(config)
    load_checkpoint(model, str(file), strict=True)
    assert equal(outputs(model.eval()), outputs(net))


def test_the_weights_may_be_trained_further(file):
    net = load_packed(file).train()
    net(torch.randn(4, 3, 32, 32), mode='tensor')[0].sum().backward()
    layers = quantized_layers(net).values()
    assert all(layer.weight.grad.isfinite().all() for layer in layers)


@pytest.mark.skipif(not distributed.is_available(), reason='no torch.distributed')
@pytest.mark.parametrize('when', ['before', 'after'])
def test_training_under_ddp(when, file, classifier, outputs):
    distributed.init_process_group(
        'gloo', store=distributed.HashStore(), rank=0, world_size=1
    )
    try:
        net = load_packed(file) if when == 'before' else build(classifier())
        late = when == 'after'
        wrapped = DistributedDataParallel(net, find_unused_parameters=late)
        if late:
            load_checkpoint(net, str(file), strict=True)
            assert equal(outputs(net.eval()), outputs(load_packed(file)))
        wrapped.train()
        for _ in range(3):
            net.zero_grad()
            wrapped(torch.randn(4, 3, 32, 32), mode='tensor')[0].sum().backward()
        assert net.backbone.conv1.weight.grad.any()
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize('share', [0, 0.001, 0.1, 0.3, 0.6, 0.95, 0.9999])
def test_a_truncated_file(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match='cut short') as error:
        load_packed(file)
    assert share < 0.9 or 'the tensor ' in str(error.value)


def header(data):
    length = int.from_bytes(data[:8], 'little')
    return length + 8, json.loads(data[8 : 8 + length])


def test_a_changed_byte_anywhere_is_noticed(file):
    data = file.read_bytes()
    start, places = header(data)
    del places['__metadata__']
    for name, place in places.items():
        changed = bytearray(data)
        changed[start + place['data_offsets'][0]] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=f"tensor '{name}' is not what was"):
            load_packed(file)
    for at in range(0, start, 97):
        changed = bytearray(data)
        changed[at] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r'x\.safetensors'):
            load_packed(file)
    file.write_bytes(data + b'more')
    with pytest.raises(ValueError, match='4 bytes behind its last tensor'):
        load_packed(file)


def test_nothing_is_half_loaded(file, classifier, outputs):
    model = build(classifier())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = file.read_bytes()
    for bad in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r'x\.safetensors'):
            load_checkpoint(model, str(file))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def rewritten(file, **metadata):
    """The file with other metadata, and no digest of it."""
    data = file.read_bytes()
    old = header(data)[1]['__metadata__']
    tensors = safetensors.torch.load(data)
    file.write_bytes(safetensors.torch.save(tensors, {**old, **metadata}))
    return file


def test_a_newer_format(file):
    with pytest.raises(ValueError, match=r"version '3'.*reads up to 2"):
        load_packed(rewritten(file, version='3'))


def test_another_safetensors_file(file):
    with pytest.raises(ValueError, match=r'no packed checkpoint.*--format packed'):
        load_packed(rewritten(file, format='pt'))


def test_changed_metadata(file):
    with pytest.raises(ValueError, match="metadata or its tensor 'index'"):
        load_packed(rewritten(file, costs='{"float":{}}'))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'found no file .*none\.safetensors'):
        load_packed(tmp_path / 'none.safetensors')


@pytest.mark.parametrize('kind', ['os.system', 'mmengine.load', 'mmdet.apis.x', 'a b'])
def test_types_of_no_registry_are_not_called(kind, tmp_path, classifier, settled):
    config = classifier()
    net = settled(config)
    config.model.neck = dict(type=kind, command='exit 1')
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    with pytest.raises(ValueError, match=f'{kind}.*no registry'):
        load_packed(file)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(neck=dict(type='evil_module')), "type 'evil_module', which no registry"),
        (dict(neck=dict(type='ReLU', _scope_='evil_package')), "scope 'evil_package'"),
        (dict(type='mmpretrain.x', _scope_='evil_package'), "scope 'evil_package'"),
        (dict(neck=dict(type='mmdet.CameraMotionCompensation')), 'no registry knows'),
    ],
)
def test_names_are_not_imported(
    change, message, tmp_path, classifier, settled, monkeypatch
):
    (tmp_path / 'evil_package').mkdir()
    for name in ('evil_module.py', 'evil_package/registry.py'):
        (tmp_path / name).write_text('raise SystemExit')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend('')
    config = classifier()
    net = settled(config)
    config.model.update(change)
    with pytest.raises(ValueError, match=message):
        load_packed(save_packed(net, 'x.safetensors', config))
    config = classifier()
    config.default_scope = 'evil_package'
    with pytest.raises(ValueError, match=r"scope 'evil_package'.*mmdet, mmengine"):
        load_packed(save_packed(net, 'x.safetensors', config))


class Execute:
    def __reduce__(self):
        return exec, ('raise SystemExit',)


@pytest.mark.parametrize('where', ['teacher_ckpt', 'teacher_config', 'pickle'])
def test_constructors_read_no_other_file(
    where, tmp_path, classifier, settled, monkeypatch
):
    (tmp_path / 'bad.pth').write_bytes(pickle.dumps(Execute()))
    config = classifier()
    net = settled(config)
    readers = dict(
        teacher_ckpt=lambda path: load_checkpoint(nn.Identity(), path),
        teacher_config=lambda path: Config.fromfile(path),
        pickle=lambda path: torch.load(path, weights_only=False),
    )

    class Teacher(nn.Module):
        def __init__(self, path):
            super().__init__()
            readers[where](path)

    monkeypatch.setitem(MODELS.module_dict, 'Teacher', Teacher)
    config.model.neck = dict(type='Teacher', path=str(tmp_path / 'bad.pth'))
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    with pytest.raises(ValueError, match='needs no other file'):
        load_packed(file)
    assert torch.load.__module__ == 'torch.serialization'  # as it was


def test_types_of_nms_and_regions_are_known():
    config = dict(
        type='mmdet.FasterRCNN',
        test_cfg=dict(nms=dict(type='soft_nms')),
        roi_layer=dict(type='RoIAlign'),
        augments=dict(type='Mixup', _scope_='mmpretrain'),
    )
    check_types(config, 'mmdet', 'x')


def test_code_from_elsewhere_is_refused():
    config = dict(type='RetinaNet', neck=[dict(trust_remote_code=True)])
    with pytest.raises(ValueError, match='trust_remote_code'):
        check_types(config, 'mmdet', 'x')


def test_classes_as_types(tmp_path, classifier, settled, outputs):
    config = classifier()
    config.model.backbone.norm_cfg = dict(type=nn.BatchNorm2d)
    config.model.backbone.type = MODELS.get('mmpretrain.ResNet')
    net = settled(config)
    found = rebuildable(config)['model']['backbone']
    assert found['type'] == 'mmpretrain.ResNet'
    assert found['norm_cfg'] == dict(type='mmengine.BN')
    assert rebuildable(dict(model=dict(type=nn.SiLU)))['model']['type'] == (
        'mmengine.SiLU'
    )
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    assert equal(outputs(load_packed(file)), outputs(net))
    config.model.neck = dict(type=Execute)
    with pytest.raises(ValueError, match=r'Execute.*in no registry'):
        save_packed(net, tmp_path / 'x.safetensors', config)
    with pytest.raises(ValueError, match='the key 3 is no text'):
        to_json({'names': {3: 'cat'}})


def test_a_config_without_a_scope_has_that_of_its_model(tmp_path, classifier, settled):
    """As of configs that name classes, where parts have defaults of their toolbox."""
    config = classifier()
    net = settled(config)
    config.model.base_type = MODELS.get('mmpretrain.ImageClassifier')
    config.model.backbone.type = MODELS.get('mmpretrain.ResNet')
    config.default_scope = None
    assert rebuildable(config)['default_scope'] == 'mmpretrain'
    found = load_packed(save_packed(net, tmp_path / 'x.safetensors', config))
    assert type(found) is type(net)


def test_a_gap_behind_the_header(file):
    data = file.read_bytes()
    start, places = header(data)
    for name in places.keys() - {'__metadata__'}:
        places[name]['data_offsets'] = [8 + o for o in places[name]['data_offsets']]
    text = json.dumps(places).encode()
    size = len(text).to_bytes(8, 'little')
    file.write_bytes(size + text + bytes(8) + data[start:])
    with pytest.raises(ValueError, match=r'x\.safetensors is damaged'):
        load_packed(file)


def test_a_deep_header(file):
    text = b'{"a":' + b'[' * 100_000
    file.write_bytes(len(text).to_bytes(8, 'little') + text)
    with pytest.raises(ValueError, match=r'x\.safetensors is damaged'):
        load_packed(file)


def test_a_net_of_another_policy(file, classifier):
    config = classifier(policy='W4A4')
    model = build(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'another policy.*layer1.*W3A4.*W4A4'):
        load_checkpoint(model, str(file))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_net(file, classifier):
    config = classifier()
    config.model.backbone.depth = 34
    with pytest.raises(ValueError, match=r'differ.*in the model: backbone\.layer1\.2'):
        load_checkpoint(build(config), str(file))


def test_a_supernet(file, classifier, settled, tmp_path):
    config = classifier(candidates=['W3A4', 'W4A4'])
    del config.model.quant.policy
    net = build(config)
    with pytest.raises(ValueError, match='a search starts from a float checkpoint'):
        load_checkpoint(net, str(file))
    with pytest.raises(ValueError, match='fixed precision; found candidates in'):
        save_packed(net, tmp_path / 'y.safetensors', config)


def test_a_float_net_takes_the_weights(file, classifier):
    config = classifier()
    config.model.type = config.model.pop('base_type')
    del config.model['quant']
    net = build(config)
    load_checkpoint(net, str(file))
    weight = load_packed(file).backbone.layer1[0].conv1.weight
    assert torch.equal(net.backbone.layer1[0].conv1.weight, weight)


def test_refuses_what_is_not_calibrated(tmp_path, classifier):
    config = classifier()
    with pytest.raises(ValueError, match=r'not calibrated: backbone\.conv1, .*more'):
        save_packed(build(config), tmp_path / 'x.safetensors', config)


def test_layers_of_conv_cfg(tmp_path, classifier, settled, outputs):
    config = classifier()
    config.model.type = config.model.pop('base_type')
    del config.model['quant']
    config.model.backbone.conv_cfg = dict(
        type='mmmpq.QuantConv2d', w_bits=2, a_bits=4, **QUANTIZERS['dorefa']
    )
    net = settled(config)
    file = save_packed(net, tmp_path / 'x.safetensors', config)
    assert equal(outputs(load_packed(file)), outputs(net))
    model = build(config)
    load_checkpoint(model, str(file))
    assert equal(outputs(model.eval()), outputs(net))


def test_the_version_is_written_down(file):
    metadata = header(file.read_bytes())[1]['__metadata__']
    assert metadata['mmmpq'] == mmmpq.__version__
    assert {'config', 'config_digest', 'policy', 'costs'} < set(metadata)
    assert json.loads(metadata['policy'])['layers']['backbone.conv1'] == [8, 8]


@pytest.mark.parametrize('name', ['learned', 'dorefa', 'skipped', 'shared'])
def test_the_reader_in_the_documentation(name, tmp_path, classifier, settled, rtmdet):
    text = (ROOT / 'docs/export.md').read_text()
    code = text.split('A reader without mmmpq:\n\n```python\n')[1].split('```')[0]
    found = {}
    exec(code, found)
    config = rtmdet if name == 'shared' else classifier(**QUANTIZERS.get(name, {}))
    if name == 'skipped':
        names = list(quantized_layers(settled(config)))
        layers = {n: SKIP if 'layer1.1' in n else Precision(4, 4) for n in names}
        config.model.quant.policy = str(Policy(layers).save(tmp_path / 'policy.json'))
    net = settled(config, 64)
    state = found['read'](save_packed(net, tmp_path / 'x.safetensors', config))
    for key, tensor in net.state_dict().items():
        if 'w_quantizer' not in key:
            layer = net.get_submodule(key.rpartition('.')[0])
            if key.endswith('.weight') and isinstance(layer, QuantLayer):
                bits = layer.precision.w_bits
                tensor = layer.w_quantizer(tensor, bits) if bits else 0 * tensor
            assert torch.equal(torch.from_numpy(state[key]), tensor)
