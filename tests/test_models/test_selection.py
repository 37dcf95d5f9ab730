"""Which layers are chosen, fixed and grouped."""

import pytest
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmcv.cnn.bricks.wrappers import Linear as WrappedLinear
from torch import nn

from mmmpq.layers import (
    MixedConv1d,
    MixedConv2d,
    MixedLinear,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    float_twin,
)
from mmmpq.models.selection import (
    default_fixed,
    expand,
    group_layers,
    parse_fixed,
)

NAMES = ['backbone.conv1', 'backbone.layer1.0.conv1', 'bbox_head.retina_cls']


class OddConv(nn.Conv2d):
    pass


class BasicBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 1)
        self.conv2 = nn.Conv2d(2, 2, 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(), BasicBlock())
        self.fc = nn.Linear(2, 2)


@pytest.fixture
def net():
    net = Net()
    return net, [n for n, m in net.named_modules() if float_twin(m)]


@pytest.mark.parametrize(
    ('layer', 'twins'),
    [
        (nn.Conv2d(1, 1, 1), (MixedConv2d, QuantConv2d)),
        (WrappedConv2d(1, 1, 1), (MixedConv2d, QuantConv2d)),
        (nn.Linear(1, 1), (MixedLinear, QuantLinear)),
        (WrappedLinear(1, 1), (MixedLinear, QuantLinear)),
        (OddConv(1, 1, 1), None),
        (nn.Conv1d(1, 1, 1), (MixedConv1d, QuantConv1d)),
        (nn.ConvTranspose1d(1, 1, 1), None),
        (nn.MultiheadAttention(2, 1).out_proj, None),
        (QuantConv2d(1, 1, 1, w_bits=4, a_bits=4), None),
    ],
)
def test_only_plain_layers_have_a_twin(layer, twins):
    assert float_twin(layer) == twins


def test_patterns():
    assert expand(['*conv1'], NAMES, 'quant.exclude') == NAMES[:2]
    assert expand([NAMES[2], 'backbone.c*'], NAMES, 'x') == [NAMES[0], NAMES[2]]
    assert expand([], NAMES, 'x') == []


def test_pattern_that_matches_nothing_lists_near_names():
    with pytest.raises(ValueError) as error:
        expand(['backbone.conv2'], NAMES, 'quant.exclude')
    text = str(error.value)
    assert text.startswith("quant.exclude: 'backbone.conv2' matches no layer")
    assert 'near names: backbone.conv1' in text
    with pytest.raises(ValueError, match=r'quant\.exclude: found 3'):
        expand([3], NAMES, 'quant.exclude')


def test_fixed_patterns_in_order():
    fixed = {'backbone.*': 'W4A4', 'backbone.conv1': None, '*retina_cls': (8, 4)}
    assert parse_fixed(fixed, NAMES) == {
        NAMES[0]: None,
        NAMES[1]: (4, 4),
        NAMES[2]: (8, 4),
    }


@pytest.mark.parametrize(
    ('fixed', 'message'),
    [
        ({'backbone.*': (4, 9)}, r"quant\.fixed\['backbone\.\*'\]: found 9 bits"),
        ({'backbon.*': (4, 4)}, r"quant\.fixed: 'backbon\.\*' matches no layer"),
        (['backbone.*'], r'quant\.fixed: found .*accepted is a dict'),
    ],
)
def test_bad_fixed(fixed, message):
    with pytest.raises(ValueError, match=message):
        parse_fixed(fixed, NAMES)


def test_groups_by_layer_block_and_pattern(net):
    model, names = net
    assert len(names) == 6
    assert group_layers(model, names, 'layer') == {n: [n] for n in names}
    assert group_layers(model, names, 'residual_block') == {
        'stem': ['stem'],
        'layer1.0': ['layer1.0.conv1', 'layer1.0.conv2'],
        'layer1.1': ['layer1.1.conv1', 'layer1.1.conv2'],
        'fc': ['fc'],
    }
    found = group_layers(model, names, ['layer1.0.*', ['stem', '*1.conv?']])
    assert found == {
        'stem + *1.conv?': ['stem', 'layer1.1.conv1', 'layer1.1.conv2'],
        'layer1.0.*': ['layer1.0.conv1', 'layer1.0.conv2'],
        'fc': ['fc'],
    }


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ('block', 'accepted are "layer", "residual_block"'),
        (3, 'accepted are'),
        (['layer2.*'], r"quant\.groups: 'layer2\.\*' matches no layer; near names"),
        (['layer1.*', '*.conv1'], r"layer1\.0\.conv1 is matched by 'layer1\.\*' and"),
    ],
)
def test_bad_groups(net, groups, message):
    with pytest.raises(ValueError, match=message):
        group_layers(*net, groups)


def test_default_fixed(net):
    model, names = net
    assert default_fixed(model, names) == ['stem', 'fc']
    assert default_fixed(nn.Sequential(nn.Linear(1, 1)), ['0']) == []
    model.stem = OddConv(2, 2, 1)  # stays float, and the next layer is no stem
    assert default_fixed(model, names[1:]) == ['fc']


@pytest.mark.parametrize(
    ('name', 'fixed'),
    [
        (
            'retinanet',
            ['backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg'],
        ),
        (
            'faster-rcnn',
            [
                'backbone.conv1',
                'rpn_head.rpn_cls',
                'rpn_head.rpn_reg',
                'roi_head.bbox_head.fc_cls',
                'roi_head.bbox_head.fc_reg',
            ],
        ),
        ('resnet', ['backbone.conv1', 'head.fc']),
    ],
)
def test_default_fixed_of_toolbox_models(small, build, name, fixed):
    model = build(small(name))
    names = [n for n, m in model.named_modules() if float_twin(m)]
    assert default_fixed(model, names) == fixed
