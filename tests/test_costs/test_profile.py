import random

import numpy as np
import pytest
import torch
import torchvision
from mmengine.model import BaseModel
from torch import nn

from mmmpq.costs import BOPs, profile, reference_input_shape, total_cost


def _macs(layers, prefix=''):
    return sum(layer.macs for layer in layers if layer.name.startswith(prefix))


def _named(layers):
    return {layer.name: layer for layer in layers}


def test_torchvision_resnet18():
    layers = profile(torchvision.models.resnet18(), (3, 224, 224))
    assert _macs(layers) / 1e6 == pytest.approx(1814.07, abs=0.005)
    assert _macs(layers[1:-1]) / 1e6 == pytest.approx(1695.55, abs=0.005)
    assert layers[1].name == 'layer1.0.conv1'
    assert layers[1].macs == 56 * 56 * 64 * 64 * 9  # 115.61 MMAC
    assert layers[1].activations == 56 * 56 * 64
    assert [layers[0].name, layers[-1].name] == ['conv1', 'fc']
    assert layers[-1].shape['input_sizes'] == {(): 1}


@pytest.mark.parametrize(
    'name, changes',
    [
        (
            'mmpretrain::resnet/resnet50_8xb32_in1k.py',
            {'model.backbone.style': 'caffe'},
        ),
        (
            'mmdet::retinanet/retinanet_r50-caffe_fpn_1x_coco.py',
            {'model.backbone.init_cfg': None},
        ),
    ],
)
def test_caffe_resnet50_is_the_float_baseline_of_bpnas(toolbox_model, name, changes):
    model = toolbox_model(name, **changes)
    layers = list(profile(model.backbone, (3, 224, 224)))
    assert _macs(layers) / 1e6 == pytest.approx(3855.9, abs=0.05)
    assert total_cost(BOPs(), layers, {}) / 1e9 == pytest.approx(3952.6, rel=2e-3)


def test_shared_module_counts_calls_and_one_weight():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.alias = self.conv
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.conv(self.alias(x)[..., ::2, ::2])

    conv, unused = profile(Shared(), (4, 8, 8))
    assert (conv.name, conv.calls, conv.weights) == ('conv', 2, 144)
    assert conv.macs == (64 + 16) * 4 * 4 * 9
    assert conv.activations == (64 + 16) * 4
    assert conv.shape['input_size'] == (8, 8)
    assert conv.shape['input_sizes'] == {(8, 8): 1, (4, 4): 1}
    assert (unused.name, unused.macs, unused.calls) == ('unused', 0, 0)


@pytest.mark.parametrize(
    'module, shape, type_, macs',
    [
        (nn.Conv2d(8, 16, 3, groups=4), (8, 5, 5), 'Conv2d', 9 * 16 * 2 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 5, 5), 'DepthwiseConv2d', 9 * 8 * 9),
        (nn.Conv2d(8, 8, 3, dilation=2), (8, 5, 5), 'Conv2d', 8 * 8 * 9),
        (nn.Conv1d(8, 4, 3), (8, 5), 'Conv1d', 3 * 4 * 8 * 3),
        (nn.Conv3d(2, 4, 3), (2, 3, 3, 3), 'Conv3d', 4 * 2 * 27),
        (nn.ConvTranspose2d(8, 4, 2, 2), (8, 5, 5), 'ConvTranspose2d', 25 * 8 * 4 * 4),
        (nn.Linear(6, 7), (10, 6), 'Linear', 10 * 7 * 6),
    ],
)
def test_layer_families(module, shape, type_, macs):
    (layer,) = profile(nn.Sequential(module), shape)
    assert (layer.type, layer.macs) == (type_, macs)
    assert layer.weights == module.weight.numel()


def test_deformable_convs():
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    for cls in (DeformConv2dPack, ModulatedDeformConv2dPack):
        layers = _named(profile(nn.Sequential(cls(4, 6, 3, padding=1)), (4, 8, 8)))
        assert layers['0'].type == cls.__name__.replace('Pack', '')
        assert layers['0'].macs == 64 * 6 * 4 * 9
        offsets = 18 if cls is DeformConv2dPack else 27
        assert layers['0.conv_offset'].macs == 64 * offsets * 4 * 9


def test_attention_is_one_layer():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            return self.attn(query=x, key=x, value=x)[0]

    (layer,) = profile(Attend(), (8, 4, 4))
    assert (layer.type, layer.weights) == ('MultiheadAttention', 4 * 64)
    assert layer.macs == 4 * 16 * 64


def test_leaves_the_model_and_the_random_state_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    profile(model, (3, 8, 8))

    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model[0]._forward_hooks
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_error_names_the_model():
    class Picky(nn.Module):
        def forward(self, x, text):
            return x

    with pytest.raises(ValueError, match='cannot profile Picky') as error:
        profile(Picky(), (3, 8, 8))
    assert isinstance(error.value.__cause__, TypeError)


@pytest.fixture
def small_backbone():
    return {'model.backbone.init_cfg': None}


def test_retinanet(toolbox_model, small_backbone):
    model = toolbox_model(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', **small_backbone
    )
    assert reference_input_shape(model) == (3, 800, 1333)
    layers = _named(profile(model))
    # 800x1344 after padding: FPN levels of strides 8 to 128
    cells = [100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11]
    head = layers['bbox_head.cls_convs.0.conv']
    assert head.calls == 5
    assert head.macs == sum(cells) * 256 * 256 * 9
    assert head.weights == 256 * 256 * 9
    assert layers['bbox_head.retina_reg'].macs == sum(cells) * 36 * 256 * 9
    # the toolbox's own count, 239.32 GMACs of all operators at 1280x800 with P6 and P7
    total = _macs(profile(model, (3, 800, 1280)))
    assert total / 1e9 == pytest.approx(239.3, rel=5e-3)


def test_faster_rcnn_is_linear_in_the_proposals(toolbox_model, small_backbone):
    model = toolbox_model(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', **small_backbone
    )
    shape = (3, 128, 192)
    few, more, default = (profile(model, shape, n) for n in (7, 500, None))
    fc = 'roi_head.bbox_head.shared_fcs.0'
    for layers, proposals in ((few, 7), (more, 500), (default, 1000)):
        assert _named(layers)[fc].macs == proposals * 12544 * 1024
        assert _named(layers)[fc].activations == proposals * 12544
        assert _named(layers)[fc].shape['input_sizes'] == {(): proposals}
        assert _named(layers)[fc].calls == 1
    for prefix in ('backbone', 'neck', 'rpn_head'):
        assert _macs(few, prefix) == _macs(more, prefix) > 0
    assert 'forward' not in vars(model.roi_head)
    assert 'predict_by_feat' not in vars(model.rpn_head)


def test_mask_rcnn_masks_at_most_100_boxes(toolbox_model, small_backbone):
    model = toolbox_model(
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', **small_backbone
    )
    mask = 'roi_head.mask_head.convs.0.conv'
    for proposals, boxes in ((20, 20), (1000, 100)):
        layers = _named(profile(model, (3, 128, 192), proposals))
        assert layers[mask].macs == boxes * 14 * 14 * 256 * 256 * 9
        assert layers['roi_head.bbox_head.fc_cls'].macs == proposals * 1024 * 81


def test_semantic_head_of_a_roi_head_counts_once_per_image(
    toolbox_model, small_backbone
):
    model = toolbox_model('mmdet::htc/htc_r50_fpn_1x_coco.py', **small_backbone)
    few, more = (_named(profile(model, (3, 64, 96), n)) for n in (5, 300))
    semantic = 'roi_head.semantic_head.convs.0.conv'
    assert few[semantic].macs == more[semantic].macs > 0
    mask = 'roi_head.mask_head.0.convs.0.conv'
    assert few[mask].macs * 60 == more[mask].macs


def test_proposals_with_features_stay_as_they_are(toolbox_model, small_backbone):
    model = toolbox_model(
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', **small_backbone
    )
    layers = _named(profile(model, (3, 128, 192), 1000))
    assert layers['roi_head.bbox_head.0.fc_cls'].macs == 100 * 256 * 80


def test_net_that_needs_multiples_of_32(toolbox_model):
    changes = {'model.backbone.init_cfg': None}
    model = toolbox_model('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', **changes)
    odd, even = profile(model, (3, 100, 150)), profile(model, (3, 128, 160))
    assert odd == even


def test_quantized_layers_are_profiled_as_float_ones(toolbox_model):
    from mmmpq.layers import MixedConv2d, QuantConv2d

    float_net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    quantized = nn.Sequential(
        QuantConv2d(3, 4, 3, w_bits=4, a_bits=4),
        MixedConv2d(4, 4, 3, groups=4, candidates=[(2, 2), (4, 4)]),
    )
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    assert profile(quantized, (3, 8, 8)) == profile(float_net, (3, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in quantized.state_dict().items())


def test_a_model_that_runs_as_in_training_alone():
    """As SparK, whose layers read the mask that its loss draws."""

    class Masked(BaseModel):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode != 'loss':
                raise AttributeError('no mask was drawn')
            return dict(loss=self.conv(inputs).mean())

    (layer,) = profile(Masked(), (3, 8, 8))
    assert layer.macs == 4 * 3 * 9 * 36
