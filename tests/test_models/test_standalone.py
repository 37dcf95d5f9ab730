"""The plain net of a policy: as the supernet's subnet, and as built from a config."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import (
    get_state_dict,
    load_checkpoint,
    save_checkpoint,
)
from torch import nn

from mmmpq.layers import QuantLayer
from mmmpq.models import (
    SubnetMobileNetV3,
    apply_policy,
    calibrate_subnet,
    quantize,
    standalone,
)
from mmmpq.policy import Policy, Precision
from mmmpq.subnets import SubnetSpace

QUANTIZERS = dict(
    w_quantizer=dict(type='LSQQuantizer'), a_quantizer=dict(type='BatchQuantizer')
)
EXCLUDE = ['backbone.stem.conv']


def config(**quant):
    backbone = dict(
        type='mmmpq.ElasticMobileNetV3',
        depths=(1, 2),
        kernels=(3, 5, 7),
        expands=(2, 3),
        stem=(8, 2),
        first=(8, 1),
        stages=((16, 2, False, 'ReLU'), (24, 1, True, 'HSwish')),
        last=32,
    )
    head = dict(type='StackedLinearClsHead', num_classes=4, in_channels=32)
    return Config(
        dict(
            type='mmmpq.QuantModel',
            base_type='ImageClassifier',
            data_preprocessor=dict(
                type='mmmpq.ElasticClsDataPreprocessor', sizes=[16, 20, 24]
            ),
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(head, mid_channels=[16], act_cfg=dict(type='HSwish')),
            quant=dict(QUANTIZERS, exclude=EXCLUDE) | quant,
        )
    )


def supernet(**quant):
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    grid = [(w, a) for w in (2, 4, 32) for a in (3, 32)]
    cfg = config(
        candidates=quant.pop('candidates', grid),
        ends='fixed',
        groups='layer',
        mixing='sampled',
        relaxation=dict(type='UniformSampling'),
        **quant,
    )
    model = MODELS.build(cfg)
    for name, param in model.named_parameters():
        if 'matrix' in name or 'bn' in name or 'shift' in name:
            param.data += torch.randn_like(param) / 5
    return model


def batches(count=2):
    random = torch.Generator().manual_seed(1)
    return [
        dict(inputs=torch.rand(4, 3, 24, 24, generator=random), data_samples=None)
        for _ in range(count)
    ]


def calibrated(model, subnet):
    """The supernet with a subnet in use, its statistics gathered."""
    space = SubnetSpace(model)
    model(batches()[0]['inputs'])  # the weights' steps start at the largest net
    space.activate(subnet)
    calibrate(model)
    return space.policy(subnet)


def calibrate(model):
    run, model._run_forward = (
        model._run_forward,
        lambda data, mode: model(data['inputs']),
    )
    try:
        calibrate_subnet(model, batches())
    finally:
        model._run_forward = run


@torch.no_grad()
def outputs(model):
    model.eval()
    return model(model.data_preprocessor(batches()[0])['inputs'])


def test_outputs_are_the_subnets_bit_for_bit():
    model = supernet()
    space = SubnetSpace(model)
    random = torch.Generator().manual_seed(0)
    subnets = [space.smallest(), space.largest()]
    subnets += [space.sample(random) for _ in range(6)]
    for subnet in subnets:
        policy = calibrated(model, subnet)
        expected = outputs(model)
        alone = standalone(model, policy)
        assert torch.equal(outputs(alone), expected)
        assert torch.equal(outputs(model), expected)  # the supernet is still one
        size = sum(p.numel() for n, p in alone.named_parameters() if 'quant' not in n)
        assert size <= sum(p.numel() for p in model.parameters())


def test_no_elastic_code_is_left():
    model = supernet()
    alone = standalone(model, calibrated(model, SubnetSpace(model).smallest()))
    assert type(alone.backbone) is SubnetMobileNetV3
    for name, module in alone.named_modules():
        assert not type(module).__name__.startswith(('Elastic', 'MixedElastic')), name
        assert not hasattr(module, 'genes'), name
        if isinstance(module, nn.Conv2d):
            assert type(module).__name__ in ('QuantConv2d', 'Conv2d'), name
            assert module.weight.shape[0] == module.out_channels
            assert module.weight.shape[2:] == module.kernel_size
    assert not any('matrix' in key for key in alone.state_dict())


def built_from(path, **quant):
    """What a config makes of a policy file."""
    cfg = config(policy=path, **quant)
    cfg.backbone.update(type='mmmpq.SubnetMobileNetV3', architecture=path)
    cfg.data_preprocessor.update(
        type='mmmpq.SubnetClsDataPreprocessor', architecture=path
    )
    return MODELS.build(cfg)


@pytest.fixture
def found(tmp_path):
    """A calibrated supernet, its policy and the file of that."""
    model = supernet()
    subnet = SubnetSpace(model).sample(torch.Generator().manual_seed(3))
    policy = calibrated(model, {**subnet, 'resolution': 20})
    return model, policy, str(policy.save(tmp_path / 'policy.json'))


def test_a_config_and_the_policy_file_build_it_again(found):
    model, policy, path = found
    alone, built = standalone(model, policy), built_from(path)
    assert built.data_preprocessor.resolution == 20
    built.load_state_dict(alone.state_dict())
    assert torch.equal(outputs(built), outputs(alone))
    assert repr(built.backbone) == repr(alone.backbone)


def test_it_takes_its_part_of_the_supernets_checkpoint(found, tmp_path):
    model, _, path = found
    save_checkpoint(dict(state_dict=get_state_dict(model)), str(tmp_path / 'all.pth'))
    built = built_from(path)
    load_checkpoint(built, str(tmp_path / 'all.pth'))
    with pytest.raises(ValueError, match='no statistics'):
        outputs(built)  # those in the checkpoint may be another subnet's
    calibrate(built)
    assert torch.equal(outputs(built), outputs(model))


def test_a_supernet_takes_no_statistics_from_a_checkpoint(found):
    model, *_ = found
    again = supernet()
    calibrated(again, SubnetSpace(again).largest(Precision(4, 3)))
    outputs(again)
    again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match='no statistics'):
        outputs(again)


@pytest.mark.parametrize('gene', ['resolution', 'stage1.0.kernel', 'precision'])
def test_statistics_of_another_subnet_are_forgotten(gene):
    model = supernet()
    space = SubnetSpace(model)
    subnet = space.largest(Precision(4, 3))
    policy = calibrated(model, subnet)
    outputs(standalone(model, policy))
    gene = next(iter(space.groups)) if gene == 'precision' else gene
    other = standalone(model, space.policy({**subnet, gene: space.genes[gene][0]}))
    with pytest.raises(ValueError, match='no statistics'):
        outputs(other)
    outputs(model)  # the supernet keeps its own


def test_statistics_of_one_width_stay_with_the_supernet(tmp_path):
    candidates = [(2, 3), (4, 3)]
    model = supernet(candidates=candidates)
    space = SubnetSpace(model)
    calibrated(model, space.largest())
    built = built_from(str(space.policy(space.smallest()).save(tmp_path / 'p.json')))
    built.load_state_dict(model.state_dict(), strict=False)
    with pytest.raises(ValueError, match='no statistics'):
        outputs(built)


@pytest.mark.parametrize('a_bits', [(3, 4), (3, 3)])
@torch.no_grad()
def test_bits_alone_make_another_net(a_bits):
    def net(**quant):
        layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        return quantize(nn.Sequential(*layers), **QUANTIZERS, **quant)

    grid = list(zip((2, 4), a_bits, strict=True))
    model = net(candidates=grid, mixing='sampled', groups='layer', ends='fixed')
    space, x = SubnetSpace(model), torch.rand(2, 3, 4, 4)
    space.activate(space.largest())
    model(x)
    for module in model.modules():
        if hasattr(module, 'extremes'):
            module.set_statistics(torch.tensor([-1.0, 1.0]))
    model.eval()
    same = apply_policy(copy.deepcopy(model), space.policy(space.largest()))
    assert torch.equal(same(x), model(x))
    policy = space.policy(space.smallest())
    loaded, again = net(policy=policy).eval(), net(policy=space.policy(space.largest()))
    loaded.load_state_dict(model.state_dict(), strict=False)
    for other in (apply_policy(copy.deepcopy(model), policy), loaded):
        with pytest.raises(ValueError, match='no statistics'):
            other(x)
    again.load_state_dict(same.state_dict())  # of a fixed net they are kept
    assert torch.equal(again.eval()(x), same(x))


def test_it_can_be_trained():
    model = supernet()
    policy = calibrated(model, SubnetSpace(model).smallest())
    alone = standalone(model, policy)
    alone.train()
    alone(batches()[0]['inputs']).square().sum().backward()
    assert all(p.grad is not None for p in alone.parameters() if p.requires_grad)


def test_steps_per_channel_are_those_of_the_channels_in_use(tmp_path):
    per_channel = dict(w_quantizer=dict(type='LSQQuantizer', per_channel=True))
    model = supernet(**per_channel)
    policy = calibrated(model, SubnetSpace(model).smallest())
    expected = outputs(model)
    alone = standalone(model, policy)
    assert torch.equal(outputs(alone), expected)
    middle = alone.backbone.stage1[0].expand_conv.conv
    assert middle.w_quantizer.step.shape == (1, middle.out_channels) == (1, 16)
    built = built_from(str(policy.save(tmp_path / 'policy.json')), **per_channel)
    built.load_state_dict(model.state_dict(), strict=False)
    calibrate(built)
    assert torch.equal(outputs(built), expected)


def test_a_range_of_the_whole_weight_at_every_call_is_refused():
    model = supernet(w_quantizer=dict(type='DoReFaQuantizer'))
    policy = calibrated(model, SubnetSpace(model).smallest())
    with pytest.raises(ValueError, match='w_quantizer: found DoReFaQuantizer'):
        standalone(model, policy)


def changed(policy, **genes):
    architecture = {**policy.meta['architecture'], **genes}
    kept = {g: v for g, v in architecture.items() if v is not None}
    return Policy(policy.layers, dict(architecture=kept))


@pytest.mark.parametrize(
    ('genes', 'message'),
    [
        ({'stage1.depth': 3}, r'3 for stage1\.depth; accepted are 1, 2'),
        ({'resolution': 22}, '22 for resolution; accepted are 16, 20, 24'),
        ({'stage1.depth': None}, r'lacks the gene stage1\.depth'),
        ({'stage1.dept': 1}, r'no gene stage1\.dept; near names: stage1\.depth'),
        ({'stage2.depth': 2}, r'only in the model: backbone\.stage2\.1'),
    ],
)
def test_policies_outside_the_space_are_refused(genes, message):
    model = supernet()
    policy = SubnetSpace(model).policy(SubnetSpace(model).smallest())
    with pytest.raises(ValueError, match=message):
        standalone(model, changed(policy, **genes))


def test_a_policy_without_an_architecture_builds_no_backbone(tmp_path):
    path = Policy({'conv': Precision(4, 4)}).save(tmp_path / 'policy.json')
    with pytest.raises(ValueError, match=r'holds none in meta\.architecture'):
        SubnetMobileNetV3(architecture=str(path))
    with pytest.raises(FileNotFoundError):
        SubnetMobileNetV3(architecture=str(tmp_path / 'none.json'))


def test_without_elastic_modules_it_is_apply_policy():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    quant = dict(mixing='sampled', groups='layer', ends='fixed')
    quantize(net, candidates=['W2A2', 'W4A4'], **quant)
    policy = SubnetSpace(net).policy(SubnetSpace(net).largest())
    x = torch.rand(2, 3, 4, 4)
    SubnetSpace(net).activate(SubnetSpace(net).largest())
    net(x)
    expected = apply_policy(copy.deepcopy(net), policy)(x)
    alone = standalone(net, policy)
    assert torch.equal(alone(x), expected)
    assert all(isinstance(m, QuantLayer) for m in alone)
    assert not any(isinstance(m, QuantLayer) for m in net[1:])
