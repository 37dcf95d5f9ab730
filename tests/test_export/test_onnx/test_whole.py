"""Detectors that are one file, from the image to the boxes."""

import copy
import json

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.about import FORMAT
from mmmpq.export.onnx.agreement import agreement, recording
from mmmpq.export.onnx.decode import OUTPUTS, Decoding, check_decodable
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork, use_onnx
from mmmpq.layers.base import calibrating
from mmmpq.models import quantize

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SIZE = 150, 190  # pixels, which most pad to 160 and 192
HEAD = dict(in_channels=16, feat_channels=32, num_classes=3)
RESNET = dict(
    backbone=dict(depth=18, base_channels=8, stem_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(HEAD, stacked_convs=1),
)
CSP = dict(
    backbone=dict(widen_factor=0.125, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128], out_channels=16),
)
DETECTORS = {
    'retinanet/retinanet_r50_fpn_1x_coco.py': RESNET,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': RESNET,
    'atss/atss_r50_fpn_1x_coco.py': RESNET,
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': dict(
        CSP, bbox_head=dict(HEAD, norm_cfg=dict(type='BN'))
    ),
    'yolox/yolox_tiny_8xb8-300e_coco.py': dict(CSP, bbox_head=HEAD),
}


def build(config, **test_cfg):
    cfg = get_config(f'mmdet::{config}')
    cfg.merge_from_dict({'model': {**DETECTORS.get(config, {}), 'test_cfg': test_cfg}})
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def pixels(model, count):
    images = torch.randint(256, (count, 3, 160, 192)).byte()
    return model.data_preprocessor(dict(inputs=list(images)), False)['inputs']


@torch.no_grad()
def alive(model):
    """With statistics and weights that let a signal through."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    for conv in getattr(model.bbox_head, 'multi_level_conv_reg', ()):
        conv.weight.mul_(0.1)  # of boxes as large as e^x, YOLOX's, all overlap
    model.train()
    onnx_cut.network(model, pixels(model, 4))
    return model.eval()


def is_layer(module):
    return isinstance(module, (nn.Conv2d, nn.Linear))


def random_maps(model, generator):
    """Outputs of the head as if they were of a net that has learnt something."""
    with torch.no_grad():
        outputs = onnx_cut.head_of(model)(
            model.extract_feat(torch.zeros(1, 3, 160, 192))
        )
    by_distance = type(model.bbox_head).__name__ in ('FCOSHead', 'RTMDetHead')

    def random(m, kind):
        values = torch.randn(m.shape, generator=generator)
        if kind == 1:
            return 30 * values.abs() if by_distance else 0.5 * values
        return values

    return [[random(m, kind) for m in level] for kind, level in enumerate(outputs)]


@pytest.mark.parametrize('config', [*DETECTORS, 'softmax'])
@pytest.mark.parametrize('score_thr', [0.05, 0.6, 1.0])
def test_boxes_of_maps_are_the_toolboxes(config, score_thr):
    if config == 'softmax':
        model = build('retinanet/retinanet_r50_fpn_1x_coco.py', score_thr=score_thr)
        model.bbox_head.use_sigmoid_cls = False
        model.bbox_head.num_classes -= 1  # the last is the background
    else:
        model = build(config, score_thr=score_thr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        maps = random_maps(model, generator)
        sizes = [m.shape[2:] for m in maps[0]]
        found = Decoding(model, sizes, (150, 150))(*onnx_cut.leaves(maps))
        (wanted,) = model.bbox_head.predict_by_feat(
            *maps, batch_img_metas=[dict(img_shape=(150, 150))], rescale=False
        )
        assert (len(wanted) == 0) == (score_thr == 1.0)
        wanted = wanted.bboxes, wanted.scores, wanted.labels
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('config', 'policy'),
    [
        *((config, 'W32A32') for config in DETECTORS),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', 'W4A8'),
        ('yolox/yolox_tiny_8xb8-300e_coco.py', 'W4A8'),
    ],
)
def test_detections_of_images_are_the_toolboxes(config, policy, tmp_path):
    """Of a float net, and of integers that ONNX Runtime has computed."""
    model = alive(build(config, score_thr=0.02))
    pinned = {name: None for name, m in model.named_modules() if is_layer(m)}
    fixed = dict(fixed=pinned) if policy == 'W32A32' else {}
    model = quantize(model, policy=policy, **fixed).eval()
    size = SIZE if DETECTORS[config] is RESNET else (160, 192)
    with torch.no_grad(), calibrating(model):
        onnx_cut.network(model, pixels(model, 2))
    export_onnx(model, tmp_path / 'whole.onnx', (3, *size), end_to_end=True)
    assert not any(module.training for module in model.modules())

    def predictions(model):
        generator = torch.Generator().manual_seed(1)
        with recording(model, lambda _: None) as found, torch.no_grad():
            for _ in range(4):
                image = torch.randint(256, (3, *size), generator=generator).byte()
                metainfo = dict(img_shape=size, scale_factor=(0.5, 2.0))
                sample = DetDataSample(metainfo=metainfo)
                model.test_step(dict(inputs=[image], data_samples=[sample]))
        return found

    compared = model
    if policy != 'W32A32':
        export_onnx(model, tmp_path / 'cut.onnx', (3, *size))
        cut = OnnxNetwork(tmp_path / 'cut.onnx', threads=1)
        compared = use_onnx(copy.deepcopy(model), cut)
    whole = use_onnx(
        copy.deepcopy(model), OnnxNetwork(tmp_path / 'whole.onnx', threads=1)
    )
    most = model.bbox_head.test_cfg.get('max_per_img', 10**6)
    found = agreement(predictions(compared), predictions(whole), 0.02, most)
    assert found.scores > 40
    assert (found.equal, found.images) == (4, 4)
    assert found.largest < 1e-4


def test_an_image_that_is_preprocessed_and_what_the_metadata_say(tmp_path):
    model = quantize(alive(build('atss/atss_r50_fpn_1x_coco.py')), policy='W32A32')
    with torch.no_grad(), calibrating(model.eval()):
        onnx_cut.network(model, pixels(model, 2))
    image = torch.randint(256, (3, *SIZE)).byte()
    batch = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
    given = {True: image[None].float(), False: batch}
    found = {}
    for normalize, images in given.items():
        path = tmp_path / f'{normalize}.onnx'
        names = ['square', 'disc', 'triangle']
        export_onnx(model, path, (3, *SIZE), end_to_end=True, normalize=normalize,
                    classes=names)  # fmt: skip
        session = onnxruntime.InferenceSession(path)
        (entry,) = session.get_inputs()
        assert (entry.name, entry.shape) == ('images', list(images.shape))
        assert [o.name for o in session.get_outputs()] == list(OUTPUTS)
        found[normalize] = session.run(None, {'images': images.numpy()})
        about = json.loads(session.get_modelmeta().custom_metadata_map[FORMAT])
        assert (about['end_to_end'], about['normalize']) == (True, normalize)
        assert about['classes'] == names
        assert about['input_shape'] == [3, *SIZE]
        assert about['preprocessing']['channels'] == 'RGB'
        assert about['preprocessing']['mean'] == pytest.approx(
            [123.675, 116.28, 103.53]
        )
        assert about['preprocessing']['fill'] == pytest.approx(
            [103.53, 116.28, 123.675]
        )
        assert about['preprocessing']['pad_size_divisor'] == 32
        decoding = about['decoding']
        assert decoding['strides'] == [[s, s] for s in (8, 16, 32, 64, 128)]
        assert decoding['anchors'][0] == [[-32, -32, 32, 32]]
        assert decoding['coder']['stds'] == [0.1, 0.1, 0.2, 0.2]
        assert decoding['test_cfg']['nms'] == dict(type='nms', iou_threshold=0.6)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(nms=None), r'test_cfg\.nms: found None; accepted'),
        (dict(nms=dict(_delete_=True, type='soft_nms', iou_threshold=0.5)), 'soft_nms'),
        (dict(nms=dict(type='nms', iou_threshold=0.5, max_num=9)), 'max_num'),
        (dict(nms_pre=-1), r'test_cfg\.nms_pre: found -1; accepted'),
        (dict(score_thr=None, max_per_img=None), r'test_cfg\.max_per_img: found None'),
    ],
)
def test_settings_that_a_graph_cannot_follow(settings, words):
    model = build('retinanet/retinanet_r50_fpn_1x_coco.py', **settings)
    with pytest.raises(ValueError, match=rf'^--end-to-end: model.*{words}'):
        check_decodable(model)


def test_models_that_a_graph_cannot_decode(classifier, settled):
    with pytest.raises(
        ValueError, match='found ImageClassifier, which predicts no box'
    ):
        check_decodable(settled(classifier()))
    with pytest.raises(ValueError, match='found FasterRCNN, which has two stages'):
        check_decodable(build('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'))
    with pytest.raises(ValueError, match=r'bbox_head\.type: found GFLHead, which deco'):
        check_decodable(build('gfl/gfl_r50_fpn_1x_coco.py'))
