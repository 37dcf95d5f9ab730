"""QuantModel: what comes back, and what is refused."""

import copy
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmmpq.layers import MixedLayer, QuantLayer, quantized_layers
from mmmpq.models import apply_policy, quantize
from mmmpq.policy import Policy, Precision
from mmmpq.search import SearchSpace
from mmmpq.search.settings import ADAM

CANDIDATES = [(2, 2), (4, 4), (8, 8)]


def mixed(model):
    return [n for n, m in quantized_layers(model).items() if isinstance(m, MixedLayer)]


@pytest.mark.parametrize('scoped', [True, False])
def test_base_type_with_a_scope_or_as_a_class(small, scoped):
    """Configs in Python style give classes; without a default scope names give it."""
    cfg = small('resnet')
    base = MODELS.get('mmpretrain.ImageClassifier')
    DefaultScope._instance_dict.clear()
    cfg.backbone.type = 'mmpretrain.ResNet'
    cfg.neck.type = 'mmpretrain.GlobalAveragePooling'
    cfg.head.type = 'mmpretrain.LinearClsHead'
    cfg.head.loss.type = 'mmpretrain.CrossEntropyLoss'
    cfg.type = 'mmmpq.QuantModel'
    cfg.data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
    cfg.base_type = 'mmpretrain.ImageClassifier' if scoped else base
    cfg.quant = dict(candidates=CANDIDATES)
    assert type(MODELS.build(cfg)) is base


def test_the_toolboxes_own_class_with_its_own_keys(small, build):
    cfg = small('retinanet')
    base = build(cfg)
    model = build(cfg, candidates=CANDIDATES)
    assert type(model) is type(base)
    assert set(base.state_dict()) <= set(model.state_dict())
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected
    assert not set(missing) & set(base.state_dict())


@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn', 'resnet'])
@pytest.mark.parametrize(
    'quant', [dict(candidates=[(32, 32)]), dict(policy='W32A32')], ids=str
)
def test_nothing_changes_when_nothing_is_quantized(small, build, name, quant):
    cfg = small(name)
    base = build(cfg).eval()
    safe = SearchSpace(build(cfg, candidates=CANDIDATES)).fixed
    model = build(cfg, fixed=dict.fromkeys(safe, 'W32A32'), **quant).eval()
    model.load_state_dict(base.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    for one, two in zip(
        base.extract_feat(image), model.extract_feat(image), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    if hasattr(base, 'bbox_head'):
        out = [m(image, None, mode='tensor') for m in (base, model)]
        torch.testing.assert_close(*out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn', 'resnet'])
def test_fresh_weights_are_the_toolboxes(small, build, name):
    """``init_cfg`` finds the swapped layers, by layer type and by name."""
    weights = []
    for quant in dict(), dict(candidates=CANDIDATES), dict(policy='W4A4'):
        torch.manual_seed(1)
        model = build(small(name), **quant)
        model.init_weights()
        weights.append(dict(model.named_parameters()))
    for other in weights[1:]:
        for key, value in weights[0].items():
            assert torch.equal(value, other[key]), key


def test_defaults_stay_at_eight_bits(small, build):
    model = build(small('faster-rcnn'), candidates=CANDIDATES)
    assert SearchSpace(model).fixed == dict.fromkeys(
        [
            'backbone.conv1',
            'rpn_head.rpn_cls',
            'rpn_head.rpn_reg',
            'roi_head.bbox_head.fc_cls',
            'roi_head.bbox_head.fc_reg',
        ],
        Precision(8, 8),
    )


def test_ends_are_searched_among_a_few_widths(small):
    cfg = small('faster-rcnn')
    cfg.update(base_type=cfg.type, type='mmmpq.QuantModel')
    cfg.quant = dict(candidates=CANDIDATES, fixed={'rpn_head.rpn_cls': 'W6A6'})
    space = SearchSpace(MODELS.build(cfg))
    found = {g.layers[0]: list(map(str, g.candidates)) for g in space.groups}
    assert found['backbone.conv1'] == ['W4A8', 'W6A8', 'W8A8']
    last = [f'{n}_{k}' for n in ('fc', 'rpn') for k in ('cls', 'reg')]
    last = [f'{"roi_head.bbox_head" if n[0] == "f" else "rpn_head"}.{n}' for n in last]
    for name in set(last) - {'rpn_head.rpn_cls'}:
        assert found[name] == [f'W{w}A{a}' for w in (4, 6, 8) for a in (4, 6, 8)]
    assert space.fixed == {'rpn_head.rpn_cls': (6, 6)}
    ends = ['backbone.conv1', *(n for n in last if n != 'rpn_head.rpn_cls')]
    assert space.ends == dict.fromkeys(ends, Precision(8, 8))
    # A budget means the net with the ends at 8 bits; the other reading has all alike.
    uniform = space.uniform(Precision(4, 4)).layers
    assert {uniform[n] for n in ends} == {(8, 8)}
    assert uniform['neck.fpn_convs.0.conv'] == (4, 4)
    every = space.uniform(Precision(4, 4), ends=True).layers
    assert {every[n] for n in ends} == {(4, 4)}


def test_fixed_and_exclude(small, build):
    model = build(
        small('resnet'),
        candidates=CANDIDATES,
        fixed={'head.fc': None, 'backbone.layer1.*': 'W4A8'},
        exclude=['backbone.conv1', 'backbone.layer4.*'],
    )
    layers = quantized_layers(model)
    assert 'backbone.conv1' not in layers
    assert not [n for n in layers if 'layer4' in n]
    assert 'head.fc' in mixed(model)
    fixed = {n: m.precision for n, m in layers.items() if isinstance(m, QuantLayer)}
    # the layer after an excluded stem is no stem
    assert fixed == {f'backbone.layer1.{b}.conv{c}': (4, 8) for b in '01' for c in '12'}


def test_candidates_by_pattern(small, build):
    """Named ends are searched; later patterns win; '*' alone names nothing."""
    ends = ['W4A4', 'W6A6', 'W8A8']
    model = build(
        small('retinanet'),
        candidates={
            '*': CANDIDATES,
            'neck.*': ['W3A3', 'W4A4'],
            'neck.fpn_convs.0.conv': ['W2A2'],
            'bbox_head.retina_*': ends,
        },
    )
    space = SearchSpace(model)
    assert space.fixed == {'backbone.conv1': (8, 8)}
    found = {g.layers[0]: g.candidates for g in space.groups}
    assert found['bbox_head.retina_cls'] == found['bbox_head.retina_reg']
    assert found['bbox_head.retina_cls'] == ((4, 4), (6, 6), (8, 8))
    assert found['neck.lateral_convs.0.conv'] == ((3, 3), (4, 4))
    assert found['neck.fpn_convs.0.conv'] == ((2, 2),)
    assert found['backbone.layer1.0.conv1'] == tuple(map(tuple, CANDIDATES))
    # A uniform net of the same config has the ends at 8/8, as a budget takes it.
    uniform = build(
        small('retinanet'),
        candidates={'*': CANDIDATES, 'bbox_head.retina_*': ends},
        policy='W4A4',
    )
    precisions = {n: m.precision for n, m in quantized_layers(uniform).items()}
    assert precisions['bbox_head.retina_reg'] == (8, 8)
    assert precisions['backbone.conv1'] == (8, 8)
    assert precisions['backbone.layer1.0.conv1'] == (4, 4)


def test_fixed_wins_over_candidates_by_pattern(small, build):
    model = build(
        small('resnet'),
        candidates={'*': CANDIDATES, 'head.fc': ['W4A4', 'W8A8']},
        fixed={'head.fc': 'W6A6', 'backbone.conv1': None},
    )
    space = SearchSpace(model)
    assert space.fixed == {'head.fc': (6, 6)}
    assert space.groups[0].layers == ['backbone.conv1']


@pytest.mark.parametrize(
    ('groups', 'number'), [('residual_block', 8), ('layer', 19), (['*.layer?.*'], 1)]
)
def test_groups(small, build, groups, number):
    model = build(small('resnet'), candidates=CANDIDATES, groups=groups)
    space = SearchSpace(model)
    assert len(space.groups) == number
    assert sum(len(g.layers) for g in space.groups) == 19
    for group in space.groups:
        layers = [model.get_submodule(n) for n in group.layers]
        assert all(layer.relaxation is group.relaxation for layer in layers)


def test_logits_are_saved_once_and_stay_shared(small, build):
    model = build(small('resnet'), candidates=CANDIDATES)
    keys = [k for k in model.state_dict() if k.endswith('logits')]
    assert len(keys) == 8
    twin = copy.deepcopy(model)
    for group in SearchSpace(twin).groups:
        with torch.no_grad():
            group.relaxation.logits.fill_(7.0)
        for name in group.layers:
            assert (twin.get_submodule(name).relaxation.logits == 7).all()
    assert not SearchSpace(model).logits[0].any()
    model.load_state_dict(twin.state_dict())
    assert all((logits == 7).all() for logits in SearchSpace(model).logits)


def test_paramwise_rules(small, build):
    model = build(small('resnet'), candidates=CANDIDATES)
    optim = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
            paramwise_cfg=dict(
                norm_decay_mult=0.0, custom_keys={'head': dict(lr_mult=2)}
            ),
        ),
    )
    held = {id(p) for g in optim.param_groups for p in g['params']}
    assert not held & {id(logits) for logits in SearchSpace(model).logits}
    assert {id(layer.weight) for layer in quantized_layers(model).values()} <= held


def test_hardware_restricts_the_candidates(small, build, tmp_path):
    path = tmp_path / 'hardware.json'
    path.write_text(
        json.dumps(
            dict(name='chip', layers=dict(Conv2d=['W4A4', 'W8A8'], Linear=['W8A8']))
        )
    )
    kwargs = dict(hardware=str(path), fixed={'head.fc': None})
    model = build(small('resnet'), candidates=CANDIDATES, **kwargs)
    for group in SearchSpace(model).groups:
        allowed = ((8, 8),) if group.name == 'head.fc' else ((4, 4), (8, 8))
        assert group.candidates == allowed
    with pytest.raises(ValueError, match=r'hardware: chip allows none of .*W2A2'):
        build(small('resnet'), candidates=[(2, 2)], **kwargs)


def test_a_found_net_is_rebuilt_from_its_file(small, build, tmp_path):
    cfg = small('resnet')
    model = build(cfg, candidates=CANDIDATES)
    model.eval()
    image = torch.randn(2, 3, 32, 32)
    space = SearchSpace(model)
    model(image)
    policy = space.policy([g % 3 for g in range(len(space.groups))])
    apply_policy(model, policy)
    assert not mixed(model)
    path = policy.save(tmp_path / 'policy.json')
    for form in str(path), path, policy:
        again = build(cfg, policy=form).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(image), model(image))


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
@pytest.mark.parametrize('kind', ['Softmax', 'GumbelSoftmax'])
@pytest.mark.parametrize('factorised', [False, True])
def test_every_mixture_gives_gradients_to_logits_and_weights(
    small, build, mixing, kind, factorised
):
    model = build(
        small('resnet'),
        candidates=[(w, a) for w in (2, 8) for a in (3, 4)],
        mixing=mixing,
        relaxation=dict(type=kind, factorised=factorised),
    ).train()
    space = SearchSpace(model)
    space.draw(torch.Generator().manual_seed(0))
    for logits in space.logits:
        logits.requires_grad_(True)
    image = torch.randn(4, 3, 32, 32)
    loss = model.head.fc(model.extract_feat(image)[-1]).logsumexp(1).sum()
    weights = [layer.weight for layer in quantized_layers(model).values()]
    grads = torch.autograd.grad(loss, [*space.logits, *weights])
    assert all(g.isfinite().all() and g.any() for g in grads)


def test_uniform_policy(small, build):
    model = build(small('resnet'), policy='W3A5', fixed={'*layer2*': 'W6A6'})
    for name, layer in quantized_layers(model).items():
        wanted = (3, 5)
        if name in ('backbone.conv1', 'head.fc'):
            wanted = (8, 8)
        if 'layer2' in name:
            wanted = (6, 6)
        assert layer.precision == wanted


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.up = nn.ConvTranspose2d(2, 2, 2, groups=2)
        self.tail = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.tail(self.up(self.conv(x)))


def test_layers_that_stay_float_are_listed_once(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmmpq.models.reached.print_log', lambda text, **_: said.append(text)
    )
    quantize(Odd(), candidates=CANDIDATES)
    assert said == ['these layers stay float: up (ConvTranspose2d)']


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['base_type', 'quant'])
def test_missing_key(small, key):
    cfg = small('resnet')
    cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=dict(policy='W4A4'))
    del cfg[key]
    with pytest.raises(ValueError, match=f'model.{key}: found none; accepted is'):
        MODELS.build(cfg)


def test_unknown_base_type(small):
    cfg = small('retinanet')
    cfg.type = 'mmmpq.QuantModel'
    cfg.update(base_type='RetinaNett', quant=dict(candidates=CANDIDATES))
    with pytest.raises(KeyError, match=r"base_type: found 'RetinaNett'.*RetinaNet"):
        MODELS.build(cfg)


def test_a_search_needs_no_key_at_all(small, build):
    cfg = small('resnet')
    cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=dict())
    layer = quantized_layers(build(cfg))['backbone.layer1.0.conv1']
    base = Config.fromfile('configs/_base_/bpnas.py')
    assert list(layer.candidates) == [Precision(*c) for c in base.candidates]
    assert base.search.optimizer == ADAM


def test_unknown_part_of_the_base_is_reported_as_such(small, build):
    cfg = small('retinanet')
    cfg.backbone.type = 'ResNett'
    with pytest.raises(KeyError, match='ResNett is not in the') as error:
        build(cfg, candidates=CANDIDATES)
    assert 'base_type' not in str(error.value)


@pytest.mark.parametrize(
    ('quant', 'error', 'message'),
    [
        (
            dict(candidate=CANDIDATES),
            KeyError,
            "unknown key 'candidate'; near.*candidates",
        ),
        (dict(candidates=[]), ValueError, r'quant\.candidates: found an empty list'),
        (dict(candidates=CANDIDATES, ends='8'), ValueError, r"quant\.ends: found '8'"),
        (dict(candidates=['W4A4', (4, 4)]), ValueError, 'W4A4 is given more than once'),
        (dict(candidates=[(2, 9)]), ValueError, r'candidates\[0\]: found 9 bits'),
        (
            dict(candidates={'*': ['W9A9']}),
            ValueError,
            r"candidates\['\*'\]\[0\]: found 9 bits",
        ),
        (
            dict(candidates={'*': CANDIDATES, 'head.f': ['W4A4']}),
            ValueError,
            r"candidates: 'head\.f' matches no layer; near names: head\.fc",
        ),
        (dict(candidates={'head.*': ['W4A4']}), ValueError, 'no pattern matches backb'),
        (
            dict(candidates={'*': CANDIDATES, '*.conv2': ['W4A4', 'W2A2']}),
            ValueError,
            r'backbone\.layer1\.0 share one choice, but their patterns give them diff',
        ),
        (dict(candidates=[(1, 2)]), ValueError, 'at least 2 bits; found 1'),
        (dict(policy='W4A9'), ValueError, 'found 9 bits'),
        (dict(policy='W4'), ValueError, r'quant\.policy: found'),
        (dict(policy=4), ValueError, r'quant\.policy: found 4'),
        (dict(policy='runs/policy.json'), FileNotFoundError, r'runs/policy\.json'),
        (
            dict(candidates=CANDIDATES, exclude=['backbone.conv']),
            ValueError,
            r"quant\.exclude: 'backbone\.conv' matches no.*near names: backbone\.conv1",
        ),
        (
            dict(candidates=CANDIDATES, fixed={'head.fcs': 'W4A4'}),
            ValueError,
            r"quant\.fixed: 'head\.fcs' matches no layer; near names: head\.fc",
        ),
        (
            dict(candidates=CANDIDATES, groups=['neck.*']),
            ValueError,
            'matches no layer',
        ),
        (dict(candidates=CANDIDATES, mixing='sum'), ValueError, "mixing: found 'sum'"),
        (dict(candidates=CANDIDATES, exclude='*'), ValueError, 'no layer is left'),
        (
            dict(candidates=CANDIDATES, quantizer=dict(type='LinearQ')),
            ValueError,
            "quantizer.type: found 'LinearQ'; near names: LinearQuantizer",
        ),
        (
            dict(
                candidates=CANDIDATES, relaxation=dict(type='Softmax', factorised=True)
            ),
            ValueError,
            'every pair of the widths',
        ),
    ],
)
def test_bad_quant(small, build, quant, error, message):
    with pytest.raises(error, match=message):
        build(small('resnet'), **quant)


def test_policy_for_another_model_names_the_layers(small, build, tmp_path):
    model = build(small('retinanet'), candidates=CANDIDATES)
    space = SearchSpace(model)
    policy = space.policy([0] * len(space.groups))
    policy.meta['model'] = 'RetinaNet'
    path = str(policy.save(tmp_path / 'policy.json'))
    with pytest.raises(ValueError) as error:
        build(small('resnet'), policy=path)
    assert 'RetinaNet' in str(error.value)
    assert 'only in the policy: neck.lateral_convs.0.conv' in str(error.value)
    assert 'only in the model: head.fc.' in str(error.value)
    with pytest.raises(ValueError, match='only in the model'):
        apply_policy(model, Policy({'backbone.conv1': Precision(8, 8)}))


@pytest.fixture
def searched(small, build, tmp_path):
    """A policy file of a search with other quantizers than the default, and a layer
    left float; and the config of that search."""
    quant = dict(
        candidates=CANDIDATES,
        w_quantizer=dict(type='mmmpq.LSQQuantizer', per_channel=True),
        a_quantizer=dict(type='LSQQuantizer'),
        exclude=['backbone.conv1', 'head.*'],
        groups='layer',
    )
    space = SearchSpace(build(small('resnet'), **quant))
    policy = space.policy([g % 3 for g in range(len(space.groups))])
    return policy.save(tmp_path / 'policy.json'), quant


def kinds(model):
    return {
        name: (type(layer.w_quantizer).__name__, layer.w_quantizer.channels > 1)
        for name, layer in quantized_layers(model).items()
    }


@pytest.mark.parametrize('inherited', [False, True])
def test_a_policy_carries_how_its_net_is_quantized(
    small, build, searched, inherited, caplog
):
    path, quant = searched
    model = build(small('resnet'), policy=str(path), **(quant if inherited else {}))
    layers = quantized_layers(model)
    assert list(layers) == list(Policy.load(path).layers)
    assert {'backbone.conv1', 'head.fc'}.isdisjoint(layers)
    assert set(kinds(model).values()) == {('LSQQuantizer', True)}
    assert not mixed(model)
    assert 'the policy was found with' not in caplog.text


def test_other_quantizers_than_the_searched_ones_are_reported(
    small, build, searched, monkeypatch
):
    said = []
    monkeypatch.setattr(
        'mmmpq.models.policies.print_log', lambda text, **_: said.append(text)
    )
    path, _ = searched
    given = dict(type='LinearQuantizer')
    model = build(small('resnet'), policy=str(path), w_quantizer=given)
    assert set(kinds(model).values()) == {('LinearQuantizer', False)}
    (text,) = [t for t in said if 'policy was found with' in t]
    assert text.startswith("quant.w_quantizer: found {'type': 'LinearQuantizer'}, but")


def test_a_policy_of_before_needs_what_it_does_not_carry(small, build, searched):
    path, quant = searched
    policy = Policy.load(path)
    del policy.meta['quant']
    with pytest.raises(ValueError, match=r'only in the model: .*backbone\.conv1'):
        build(small('resnet'), policy=policy)
    model = build(small('resnet'), policy=policy, **quant)
    assert set(kinds(model).values()) == {('LSQQuantizer', True)}


@pytest.mark.parametrize('content', ['', '{"format": "mmmpq-policy", "lay', '{}'])
def test_damaged_policy(small, build, tmp_path, content):
    path = tmp_path / 'policy.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=r'policy\.json (is damaged|is JSON, but no)'):
        build(small('resnet'), policy=str(path))


# --- one toolbox alone, and quiet registries ------------------------------------------


@pytest.mark.parametrize('absent', ['mmdet', 'mmpretrain', 'mmdet mmpretrain'])
def test_imports_without_a_toolbox(absent):
    code = """
        import importlib.machinery as machinery, sys
        absent = sys.argv[1].split()
        find = machinery.PathFinder.find_spec
        def find_spec(name, path=None, target=None):
            hidden = name.split('.')[0] in absent
            return None if hidden else find(name, path, target)
        machinery.PathFinder.find_spec = find_spec
        import mmmpq
        from mmengine.registry import MODELS
        from torch import nn
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
        mmmpq.models.quantize(net, candidates=[(2, 2), (4, 4)])
        assert MODELS.get('mmmpq.QuantModel')
        assert not set(absent) & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), absent],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['retinanet', 'resnet'])
@pytest.mark.parametrize('quant', [dict(candidates=CANDIDATES), dict(policy='W4A4')])
def test_no_registry_complains(small, build, monkeypatch, name, quant):
    said = []
    monkeypatch.setattr(
        'mmengine.logging.print_log', lambda text, *_, **__: said.append(text)
    )
    build(small(name), **quant)
    assert said
    assert not [text for text in said if 'Failed to search registry' in text]
