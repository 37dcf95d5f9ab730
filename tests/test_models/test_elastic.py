"""The once-for-all MobileNetV3: slices, kernels, depth, counts, weights of others."""

import itertools

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.models import MobileNetV3
from torch import nn
from torch.nn import functional as F

from mmmpq.costs import profile
from mmmpq.models import (
    ElasticClsDataPreprocessor,
    ElasticMobileNetV3,
    SubnetClsDataPreprocessor,
    SubnetMobileNetV3,
    count_subnets,
    quantize,
    sort_channels,
)
from mmmpq.models.elastic.batchnorm import ElasticBatchNorm2d
from mmmpq.models.elastic.conv import ElasticConv2d
from mmmpq.subnets import SubnetSpace

STAGES = ((16, 2, False, 'ReLU'), (24, 2, True, 'HSwish'))
SMALL = dict(
    depths=(1, 2),
    kernels=(3, 5, 7),
    expands=(2, 3),
    stem=(8, 2),
    first=(8, 1),
    stages=STAGES,
    last=32,
)
QUANT = dict(
    candidates=[(w, a) for w in (2, 3, 4) for a in (2, 3, 4)],
    w_quantizer=dict(type='LSQQuantizer'),
    a_quantizer=dict(type='BatchQuantizer'),
    groups='layer',
    relaxation=dict(type='UniformSampling'),
    mixing='sampled',
    fixed={'*.se.*': (8, 8)},
    exclude=['stem.conv'],
)
# mmpretrain's large net is one of these: its middle channels are 2.3 to 6 times as many
LARGE = dict(expands=(2.3, 2.5, 3, 4, 6), norm_cfg=dict(type='BN', eps=0.001))
LARGE_DEPTHS = dict(stage1=2, stage2=3, stage3=4, stage4=2, stage5=3)


def sampled(net, seed=0):
    space = SubnetSpace(net)
    subnet = space.sample(torch.Generator().manual_seed(seed))
    space.activate(subnet)
    return subnet


def randomised(net):
    """Statistics, affine parameters and matrices away from their start."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.dtype.is_floating_point:
            noise = torch.rand_like(tensor)
            tensor.data = tensor + noise if 'matrix' in name else noise + 0.5
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
    net.eval()
    return net


def large_architecture():
    values = {}
    settings = iter(MobileNetV3.arch_settings['large'][1:])
    channels = 16
    for stage, depth in LARGE_DEPTHS.items():
        values[f'{stage}.depth'] = depth
        for i in range(depth):
            kernel, middle, out, *_ = next(settings)
            ratio = next(e for e in LARGE['expands'] if round(channels * e) == middle)
            values.update({f'{stage}.{i}.kernel': kernel, f'{stage}.{i}.expand': ratio})
            channels = out
    return values


# --- layers ---------------------------------------------------------------------------


def test_kernels_are_transformed_centres():
    conv = ElasticConv2d(4, 4, 7, padding=3, groups=4, bias=False, kernels=(3, 5, 7))
    by_five, by_three = torch.rand(25, 25), torch.rand(9, 9)
    conv.matrix_7to5.data, conv.matrix_5to3.data = by_five, by_three
    five = torch.einsum('ij,cj->ci', by_five, conv.weight[:, 0, 1:6, 1:6].flatten(1))
    five = five.unflatten(1, (1, 5, 5))
    three = torch.einsum('ij,cj->ci', by_three, five[:, 0, 1:4, 1:4].flatten(1))
    x = torch.rand(2, 4, 9, 9)
    for size, weight in (
        (7, conv.weight),
        (5, five),
        (3, three.unflatten(1, (1, 3, 3))),
    ):
        conv.resize(kernel_size=size)
        expected = F.conv2d(x, weight, padding=size // 2, groups=4)
        torch.testing.assert_close(conv(x), expected)
        conv.resize(2, 2)
        torch.testing.assert_close(conv(x[:, :2]), expected[:, :2])
        conv.resize(4, 4)


@pytest.mark.parametrize('size', [3, 5, 7])
def test_idle_matrices_have_gradients_of_zero(size):
    conv = ElasticConv2d(4, 4, 7, padding=3, groups=4, kernels=(3, 5, 7))
    conv.resize(kernel_size=size)
    conv(torch.rand(1, 4, 9, 9)).sum().backward()
    assert bool(conv.matrix_7to5.grad.any()) == (size < 7)
    assert bool(conv.matrix_5to3.grad.any()) == (size < 5)


def test_the_full_filter_is_quantized_and_then_sliced():
    net = nn.Sequential(ElasticConv2d(8, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 1))
    quantize(
        net, policy='W3A32', w_quantizer=QUANT['w_quantizer'], fixed={'0': 'W3A32'}
    )
    conv = net[0]
    conv.resize(4, 6)
    x = torch.rand(1, 4, 3, 3)
    got = conv(x)
    step = 2 * conv.weight.abs().mean() / 3**0.5  # of all 64 weights
    torch.testing.assert_close(conv.w_quantizer.step.squeeze(), step)
    weight = (conv.weight / step).clamp(-4, 3).round() * step
    torch.testing.assert_close(got, F.conv2d(x, weight[:6, :4], conv.bias[:6]))


def test_own_weights_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), ElasticConv2d(8, 8, 1))
    with pytest.raises(ValueError, match='own_weights'):
        quantize(net, candidates=['W2A2', 'W4A4'], mixing='sampled', own_weights=True)


@pytest.mark.parametrize('momentum', [0.1, None])
def test_batchnorm_keeps_statistics_of_idle_channels(momentum):
    norm, plain = ElasticBatchNorm2d(5, momentum=momentum), nn.BatchNorm2d(3)
    plain.momentum = momentum
    norm.num_features = 3
    for _ in range(3):
        x = torch.randn(4, 3, 2, 2)
        assert torch.equal(norm(x), plain(x))
    assert torch.equal(norm.running_mean[:3], plain.running_mean)
    assert torch.equal(norm.running_var[:3], plain.running_var)
    assert torch.equal(norm.running_mean[3:], torch.zeros(2))
    assert torch.equal(norm.running_var[3:], torch.ones(2))
    assert torch.equal(norm.eval()(x), plain.eval()(x))


# --- the backbone ---------------------------------------------------------------------


def test_widths_and_strides_are_the_published_ones():
    net = ElasticMobileNetV3(width_mult=1.2)
    widths = [stage[0].linear_conv.conv.out_channels for stage in net.stages.values()]
    assert [net.stem.conv.out_channels, *widths] == [24, 32, 48, 96, 136, 192]
    assert net.first.linear_conv.conv.out_channels == 24
    assert net.last.conv.out_channels == 1152
    with torch.no_grad():
        assert net(torch.rand(1, 3, 64, 64))[0].shape == (1, 1152, 2, 2)
    assert [len(stage) for stage in net.stages.values()] == [4] * 5
    assert len(net.genes()) == 5 + 2 * 20


def test_every_subnet_computes_what_a_plain_net_with_its_slices_does():
    net = randomised(ElasticMobileNetV3(**SMALL))
    x = torch.rand(2, 3, 20, 20)
    for seed in range(5):
        subnet = sampled(net, seed)
        plain = SubnetMobileNetV3(architecture=subnet, **SMALL)
        state = net.state_dict()
        sliced = {}
        for name, value in plain.state_dict().items():
            full = state[name]
            if value.shape[2:] != full.shape[2:] if full.dim() == 4 else False:
                conv = net.get_submodule(name.removesuffix('.weight'))
                full = conv._latent_weight()
            sliced[name] = full[tuple(slice(n) for n in value.shape)]
        plain.load_state_dict(sliced)
        plain.eval()
        with torch.no_grad():
            torch.testing.assert_close(net(x)[0], plain(x)[0])


def test_idle_parts_have_gradients_of_zero():
    net = quantize(ElasticMobileNetV3(**SMALL), **QUANT)
    space = SubnetSpace(net)
    space.activate({**space.largest(), 'stage1.depth': 1, 'stage2.0.expand': 2})
    net(torch.rand(2, 3, 16, 16))[0].square().sum().backward()
    params = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in params.values())
    assert not any(p.grad.any() for n, p in params.items() if n.startswith('stage1.1'))
    middle = net.stage2[0].expand_conv.conv.weight.grad
    assert middle[:32].any() and not middle[32:].any()


def test_idle_names_what_the_depth_leaves_out():
    net = quantize(ElasticMobileNetV3(**SMALL), **QUANT)
    space = SubnetSpace(net)
    subnet = {**space.largest(), 'stage2.depth': 1}
    out = set(space.layers(space.largest())) - set(space.layers(subnet))
    assert {n.rsplit('.', 2)[0] for n in out} == {'stage2.1', 'stage2.1.se'}
    assert {'stage2.1.kernel', 'stage2.1.expand'} < space.idle(subnet)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'stage1.depth': 3}, r'3 for stage1\.depth; accepted are 1, 2'),
        ({'stage2.1.kernel': 4}, r'4 for stage2\.1\.kernel; accepted are 3, 5, 7'),
    ],
)
def test_values_outside_the_space_are_refused(values, message):
    net = ElasticMobileNetV3(**SMALL)
    with pytest.raises(ValueError, match=message):
        net.activate(values)
    with pytest.raises(ValueError, match=message):
        SubnetMobileNetV3(architecture={**net.architecture, **values}, **SMALL)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('depths', ()),
        ('depths', 2),
        ('kernels', (2, 3)),
        ('expands', (0.5, 1)),
        ('expands', (1, 3)),
        ('norm_cfg', dict(type='SyncBN')),
    ],
)
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        ElasticMobileNetV3(**{**SMALL, key: value})
    with pytest.raises(ValueError, match=key):
        SubnetMobileNetV3(architecture='smallest', **{**SMALL, key: value})


def test_replaced_norms_are_refused():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(ElasticMobileNetV3(**SMALL))
    with pytest.raises(ValueError, match='sync_bn: found SyncBatchNorm'):
        net.activate({'stage1.0.expand': 2})


def test_a_missing_gene_is_named():
    with pytest.raises(ValueError, match=r'no value for stage1\.0\.expand'):
        SubnetMobileNetV3(architecture={'stage1.depth': 1}, **SMALL)


# --- counts ---------------------------------------------------------------------------


def by_hooks(net, resolution):
    """MACs and weights by the shapes of what the layers really compute."""
    macs, weights = {}, {}
    kernels = {}

    def conv2d(x, weight, *args):
        kernels['last'] = weight
        return original(x, weight, *args)

    def record(name):
        def hook(module, args, output):
            weight = kernels['last']
            weights[name] = weight.numel()
            macs[name] = output[0, 0].numel() * weight.numel()

        return hook

    handles = [
        m.register_forward_hook(record(n))
        for n, m in net.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    original, torch.nn.functional.conv2d = F.conv2d, conv2d
    try:
        with torch.no_grad():
            net(torch.rand(1, 3, resolution, resolution))
    finally:
        torch.nn.functional.conv2d = original
        for handle in handles:
            handle.remove()
    return macs, weights


@pytest.mark.parametrize('resolution', [128, 148, 224])
def test_macs_are_those_counted_by_hooks_and_by_the_profile(resolution):
    net = ElasticMobileNetV3(width_mult=1.2)
    net.eval()
    for seed in range(2):
        subnet = sampled(net, seed)
        macs, weights = by_hooks(net, resolution)
        assert net.layer_macs(subnet, resolution) == macs
        assert net.layer_weights(subnet) == weights
        found = [p for p in profile(net, (3, resolution, resolution)) if p.calls]
        assert {p.name: p.macs for p in found} == macs
        assert {p.name: p.weights for p in found} == weights


def test_macs_of_a_quantized_supernet_are_those_of_its_float_twin():
    net = quantize(ElasticMobileNetV3(**SMALL), **QUANT)
    subnet = sampled(net)
    found = {p.name: p.macs for p in profile(net, (3, 20, 20)) if p.calls}
    assert found == net.layer_macs(subnet, 20)


def test_subnets_are_counted_as_by_enumeration():
    stages = STAGES[:1]
    net = ElasticMobileNetV3(**{**SMALL, 'stages': stages, 'kernels': (3, 5)})
    quantize(net, **{**QUANT, 'candidates': ['W2A2', 'W4A4'], 'fixed': {}})
    space = SubnetSpace(net)
    others = [g for g in space.genes if not g.startswith('stage')]
    genes = {g: v for g, v in space.genes.items() if g not in others}
    distinct = set()
    for values in itertools.product(*genes.values()):
        subnet = dict(space.largest(), **dict(zip(genes, values, strict=True)))
        distinct.add(tuple(space.canonical(subnet)[g] for g in genes))
    assert count_subnets(net) == len(distinct) * 2 ** len(others)


def test_the_published_space_holds_more_than_1e76_nets():
    net = quantize(ElasticMobileNetV3(width_mult=1.2), **QUANT)
    block = 9 * 9**3  # kernel, expansion; bits of three layers
    stages = sum(block**d for d in (2, 3, 4)) ** 5
    assert stages > 10**76
    assert count_subnets(net) == stages * 9**2 * 9  # the fixed block and the last layer
    images = ElasticClsDataPreprocessor(range(128, 225, 4))
    both = nn.ModuleDict(dict(backbone=net, data_preprocessor=images))
    assert count_subnets(both) == count_subnets(net) * 25


# --- weights of other nets ------------------------------------------------------------


@pytest.mark.parametrize('kind', [SubnetMobileNetV3, ElasticMobileNetV3])
def test_mmpretrains_large_net_is_one_of_ours(kind):
    large = randomised(MobileNetV3('large'))
    architecture = large_architecture()
    if kind is SubnetMobileNetV3:
        net = kind(architecture=architecture, **LARGE)
    else:
        net = kind(**LARGE)
        net.activate(architecture)
    net.load_state_dict(large.state_dict())
    x = torch.rand(1, 3, 64, 64).double()  # sums in another order grow apart
    for each in (net.double(), large.double()):
        each.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], large(x)[0])


def test_a_fixed_net_becomes_a_subnet_and_its_channels_are_sorted():
    net = ElasticMobileNetV3(**SMALL)
    architecture = {**net.architecture, 'stage1.1.kernel': 3, 'stage2.depth': 1}
    fixed = randomised(SubnetMobileNetV3(architecture=architecture, **SMALL))
    start = net.stage2[1].linear_conv.conv.weight.clone()
    net.load_state_dict(fixed.state_dict())
    net.activate(architecture)
    net.eval()
    x = torch.rand(1, 3, 20, 20)
    torch.testing.assert_close(net(x)[0], fixed(x)[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(net.stage2[1].linear_conv.conv.weight, start)
    for block in net.blocks():
        importance = block.linear_conv.conv.weight.abs().sum((0, 2, 3))
        assert (importance.diff() <= 0).all()


def test_weights_of_a_supernet_are_loaded_as_they_are():
    net, other = ElasticMobileNetV3(**SMALL), randomised(ElasticMobileNetV3(**SMALL))
    quantize(net, **QUANT)
    net.load_state_dict(other.state_dict(), strict=False)
    for name, value in other.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_a_float_supernet_of_one_kernel_is_taken_apart():
    settings = {**SMALL, 'kernels': (3,)}
    net = randomised(ElasticMobileNetV3(**settings))
    net.activate({'stage1.depth': 1, 'stage1.0.expand': 2, 'stage2.1.expand': 2})
    fixed = SubnetMobileNetV3(architecture=net.architecture, **settings)
    fixed.eval()
    fixed.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 20, 20)
    assert torch.equal(fixed(x)[0], net(x)[0])
    # what is no supernet is refused, as ever
    smaller = SubnetMobileNetV3(architecture='smallest', **settings)
    with pytest.raises(RuntimeError, match='Error'):
        smaller.load_state_dict(fixed.state_dict())
    large = SubnetMobileNetV3(architecture='largest', **SMALL)
    with pytest.raises(RuntimeError, match=r'depthwise_conv\.conv\.weight'):
        smaller.load_state_dict(large.state_dict())


def test_a_net_of_other_widths_is_refused():
    wide = SubnetMobileNetV3(architecture='largest', **{**SMALL, 'first': (24, 1)})
    with pytest.raises(RuntimeError, match='size mismatch'):
        ElasticMobileNetV3(**SMALL).load_state_dict(wide.state_dict())


def test_sorted_channels_compute_the_same():
    net = randomised(ElasticMobileNetV3(**SMALL))
    x = torch.rand(1, 3, 20, 20)
    before = net(x)[0]
    sort_channels(net)
    torch.testing.assert_close(net(x)[0], before, rtol=1e-4, atol=1e-4)
    importance = net.stage1[0].linear_conv.conv.weight.abs().sum((0, 2, 3))
    assert (importance.diff() <= 0).all()


def published_names(net):
    """Names of our tensors in the published checkpoints, those of one block spelt out.

    Its first block is wrapped less than the others.
    """
    names = {'stem.conv.weight': 'first_conv.conv.weight'}
    names |= {f'stem.bn.{k}': f'first_conv.bn.{k}' for k in ('weight', 'running_var')}
    for ours, theirs in (
        ('depthwise_conv', 'depth_conv'),
        ('linear_conv', 'point_linear'),
    ):
        names[f'first.{ours}.conv.weight'] = f'blocks.0.conv.{theirs}.conv.weight'
        names[f'first.{ours}.bn.bias'] = f'blocks.0.conv.{theirs}.bn.bias'
    for block, prefix in (
        ('stage1.0', 'blocks.1.mobile_inverted_conv'),
        ('stage2.1', 'blocks.4.conv'),
    ):
        for ours, theirs in (
            ('expand_conv.conv.weight', 'inverted_bottleneck.conv.conv.weight'),
            ('expand_conv.bn.weight', 'inverted_bottleneck.bn.bn.weight'),
            ('depthwise_conv.conv.weight', 'depth_conv.conv.conv.weight'),
            ('depthwise_conv.conv.matrix_7to5', 'depth_conv.conv.7to5_matrix'),
            ('depthwise_conv.conv.matrix_5to3', 'depth_conv.conv.5to3_matrix'),
            ('se.conv1.conv.weight', 'depth_conv.se.fc.reduce.weight'),
            ('se.conv2.conv.bias', 'depth_conv.se.fc.expand.bias'),
            ('linear_conv.conv.weight', 'point_linear.conv.conv.weight'),
            ('linear_conv.bn.running_mean', 'point_linear.bn.bn.running_mean'),
        ):
            names[f'{block}.{ours}'] = f'{prefix}.{theirs}'
    for i, block in enumerate(('stage1.1', 'stage2.0'), 2):  # widths tell the stages
        theirs = f'blocks.{i}.conv.point_linear.conv.conv.weight'
        names[f'{block}.linear_conv.conv.weight'] = theirs
    names['last.conv.weight'] = 'final_expand_layer.conv.weight'
    return {k: v for k, v in names.items() if k in net.state_dict()}


def test_published_supernets_load_into_a_classifier(tmp_path):
    init_default_scope('mmpretrain')
    head = dict(type='StackedLinearClsHead', num_classes=4, in_channels=32)
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='mmmpq.ElasticMobileNetV3', **SMALL),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(head, mid_channels=[16]),
    )
    model = MODELS.build(cfg)
    names, own = published_names(model.backbone), model.backbone.state_dict()
    assert len(names) == 3 + 4 + 7 + 9 + 2 + 1
    state = {theirs: torch.rand_like(own[ours]) for ours, theirs in names.items()}
    state['feature_mix_layer.conv.weight'] = mix = torch.rand(16, 32, 1, 1)
    state['classifier.linear.linear.weight'] = last = torch.rand(4, 16)
    torch.save(dict(state_dict=state), tmp_path / 'published')
    load_checkpoint(model, str(tmp_path / 'published'))
    for ours, theirs in names.items():
        found = model.backbone.state_dict()[ours]
        assert torch.equal(found, state[theirs]), ours
    assert torch.equal(model.head.layers[0].fc.weight, mix[..., 0, 0])
    assert not model.head.layers[0].fc.bias.any()
    assert torch.equal(model.head.layers[1].fc.weight, last)


# --- resolution -----------------------------------------------------------------------


def test_the_preprocessor_resizes_to_the_resolution_in_use():
    images = ElasticClsDataPreprocessor([8, 12, 16], mean=[1.0] * 3, std=[2.0] * 3)
    assert images.genes() == dict(resolution=(8, 12, 16))
    batch = torch.rand(2, 3, 16, 16)
    normal = (batch - 1) / 2
    assert torch.equal(images(dict(inputs=batch))['inputs'], normal)
    images.activate(dict(resolution=8))
    # the antialiased triangle of twice the width: 1/8, 3/8, 3/8, 1/8 away from the rim
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    weight = (taps[:, None] * taps).expand(3, 1, 4, 4)
    expected = F.conv2d(normal, weight, stride=2, padding=1, groups=3)
    got = images(dict(inputs=batch))['inputs']
    assert got.shape == (2, 3, 8, 8)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_a_resolution_that_is_not_offered_is_refused():
    images = ElasticClsDataPreprocessor([8, 16])
    with pytest.raises(ValueError, match='12 for resolution; accepted are 8, 16'):
        images.activate(dict(resolution=12))
    with pytest.raises(ValueError, match='12 for resolution; accepted are 8, 16'):
        SubnetClsDataPreprocessor(dict(resolution=12), sizes=[8, 16])
    with pytest.raises(ValueError, match='accepted are square ones'):
        images(dict(inputs=torch.rand(1, 3, 8, 16)))
    with pytest.raises(ValueError, match='accepted are square ones'):
        images(dict(inputs=torch.rand(1, 3, 16, 8)))
    wide = dict(inputs=torch.rand(1, 3, 8, 16))
    assert SubnetClsDataPreprocessor({})(wide)['inputs'].shape == (1, 3, 8, 16)
    with pytest.raises(ValueError, match=r'data_preprocessor\.sizes'):
        ElasticClsDataPreprocessor([])
