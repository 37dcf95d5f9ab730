"""No decay reaches a range; in all else it follows the weight of its layer."""

from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from torch import nn

from mmmpq import exempt_ranges, quantize
from mmmpq.models.decay import warn_of_decay
from mmmpq.quantizers import Quantizer
from mmmpq.search.logits import build_optimizer

ADAM = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
SEARCH = dict(candidates=['W2A2', 'W4A4'], groups='layer')


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def options(model, optimizer):
    """Those of each parameter that has a name, its group without what names it."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: {k: v for k, v in group.items() if not k.startswith('param')}
        for group in optimizer.param_groups
        for p in group['params']
    }


def built(model, **cfg):
    cfg = dict(dict(type='OptimWrapper', optimizer=ADAM), **cfg)
    return options(model, build_optim_wrapper(model, cfg).optimizer)


def check(model, found, trained=True):
    """All ranges: no decay, and the other options of their layer's weight."""
    count = 0
    for prefix, layer in model.named_modules():
        for child, quantizer in layer.named_children():
            if not isinstance(quantizer, Quantizer):
                continue
            for name, param in quantizer.named_parameters():
                if trained and not param.requires_grad:
                    continue
                weight = found[f'{prefix}.weight']
                got = found[f'{prefix}.{child}.{name}']
                assert got == dict(weight, weight_decay=0.0), (prefix, child)
                count += 1
    assert count > 5


@pytest.mark.parametrize(
    'rules',
    [
        None,
        dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        dict(dwconv_decay_mult=0.0, flat_decay_mult=0.0, bias_lr_mult=2.0),
        dict(custom_keys={'2': dict(lr_mult=0.1), '4.': dict(decay_mult=3.0)}),
        dict(custom_keys={'weight': dict(lr_mult=0.1, decay_mult=2.0)}),
        dict(custom_keys={'range': dict(lr_mult=0.1, decay_mult=2.0)}),
    ],
)
@pytest.mark.parametrize(
    'quant',
    [
        dict(policy='W4A4'),
        SEARCH,
        dict(policy='W4A4', w_quantizer=dict(type='LSQQuantizer', per_channel=True)),
        dict(SEARCH, mixing='outputs', own_weights=True),
        dict(policy='W4A4', a_quantizer=dict(type='BatchQuantizer')),
    ],
)
def test_ranges_follow_their_weight(quant, rules):
    model = quantize(net(), **quant)
    found = built(model, paramwise_cfg=rules)
    check(model, found)
    assert found['6.weight']['weight_decay'] > 0
    logits = [group for name, group in found.items() if 'logits' in name]
    assert all(group['weight_decay'] == 0 for group in logits)
    assert bool(logits) == ('candidates' in quant and rules is None)


def test_a_rule_for_quantizers_is_one():
    model = quantize(net(), policy='W4A4')
    rules = {'quantizer': dict(lr_mult=0.1), '2.': dict(lr_mult=0.5)}
    found = built(model, paramwise_cfg=dict(custom_keys=rules))
    for name, group in found.items():
        if 'quantizer' in name:
            assert group['lr'] == pytest.approx(1e-4) and group['weight_decay'] == 0
    assert found['2.weight']['lr'] == 5e-4


def test_layer_decay_of_mmpretrain():
    init_default_scope('mmpretrain')
    cfg = get_config('mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    cfg.model.backbone.update(arch=arch, img_size=32, init_cfg=None)
    cfg.model.head.update(in_channels=32, num_classes=10)
    cfg.model.train_cfg = None
    model = quantize(MODELS.build(cfg.model), policy='W4A4')
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=ADAM,
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5, flat_decay_mult=0.0),
        ),
    )
    found = options(model, wrapper.optimizer)
    check(model, found)
    assert len({group['lr'] for group in found.values()}) > 2


@pytest.mark.parametrize('scope, kind', [('mmpretrain', 'LARS'), ('mmdet', 'SGD')])
def test_optimizers_of_the_toolbox(scope, kind):
    init_default_scope(scope)
    model = quantize(net(), policy='W4A4')
    built(model, optimizer=dict(type=kind, lr=0.1, momentum=0.9, weight_decay=0.01))
    search = build_optimizer(
        dict(type=kind, lr=0.1), [nn.Parameter(torch.zeros(1))], None
    )
    assert type(search.optimizer).__name__ == kind
    with pytest.raises(
        ValueError, match=f'type: found .{kind}s.; near names: .*{kind}'
    ):
        built(model, optimizer=dict(type=f'{kind}s', lr=0.1))


def test_layer_decay_of_mmdet():
    init_default_scope('mmdet')
    cfg = get_config(
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    )
    cfg.model.backbone.init_cfg = None
    model = quantize(MODELS.build(cfg.model), policy='W4A4')
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=ADAM,
            constructor='LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
        ),
    )
    for group in wrapper.optimizer.param_groups:
        assert len(group['params']) == len(group['param_names'])
        named = dict(model.named_parameters())
        pairs = zip(group['params'], group['param_names'], strict=True)
        assert all(named[name] is param for param, name in pairs)
    found = options(model, wrapper.optimizer)
    for group in found.values():
        group.pop('group_name', None)
    check(model, found)


def test_a_constructor_of_the_user_with_several_optimizers():
    from mmengine.optim import OptimWrapperDict

    class Two:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
            pass

        def __call__(self, model):
            return OptimWrapperDict(
                **{
                    key: OptimWrapper(torch.optim.SGD(p, lr, weight_decay=0.1))
                    for key, p, lr in (
                        ('stem', model[0].parameters(), 0.1),
                        ('rest', model[1:].parameters(), 0.2),
                    )
                }
            )

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='Two', module=Two, force=True)
    model = quantize(net(), policy='W4A4')
    wrapper = build_optim_wrapper(
        model, Config(dict(constructor='Two', optimizer=dict()))._cfg_dict
    )
    found = options(model, wrapper['rest'].optimizer)
    found |= options(model, wrapper['stem'].optimizer)
    check(model, found, trained=False)


def test_without_gradient_no_range_moves():
    model = quantize(net(), policy='W4A4')
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.1)
    exempt_ranges(optimizer, model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(20):
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    for name, param in model.named_parameters():
        decayed = name.endswith('weight')  # a bias may be 0
        assert not decayed or not torch.equal(param, before[name]), name
        assert 'quantizer' not in name or torch.equal(param, before[name]), name


def test_an_optimizer_of_the_user_is_warned_of():
    model = quantize(net(), policy='W4A4')
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    with mock.patch('mmmpq.models.decay.print_log') as said:
        warn_of_decay(optimizer, model)
        assert '(8, such as 0.w_quantizer.range)' in said.call_args.args[0]
        said.reset_mock()
        warn_of_decay(exempt_ranges(optimizer, model), model)
        said.assert_not_called()


def test_without_decay_the_groups_stay_what_they_were():
    model = quantize(net(), policy='W4A4')
    optimizer = exempt_ranges(torch.optim.SGD(model.parameters(), 0.1), model)
    assert len(optimizer.param_groups) == 1
