"""The toolbox's model with an exported network in it."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.about import FORMAT
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork, use_onnx
from mmmpq.layers.base import calibrating
from mmmpq.models import quantize

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SMALL = dict(
    backbone=dict(depth=18, base_channels=8, stem_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
)
RETINANET = dict(
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3),
    # Fresh scores lie at 0.01, so that NMS has something to do.
    test_cfg=dict(score_thr=0.0, max_per_img=20),
)
FASTER_RCNN = dict(
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3),
    ),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=20)),
)
DETECTORS = {
    'retinanet/retinanet_r50_fpn_1x_coco.py': RETINANET,
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': FASTER_RCNN,
}


@pytest.mark.parametrize('config', DETECTORS)
def test_decoding_and_the_second_stage_are_the_toolboxes(config, tmp_path):
    cfg = get_config(f'mmdet::{config}')
    cfg.merge_from_dict({'model': {**SMALL, **DETECTORS[config]}})
    init_default_scope('mmdet')
    model = quantize(MODELS.build(cfg.model), policy='W4A4').eval()
    images = torch.randn(2, 3, 96, 64)

    def predict():
        samples = [
            DetDataSample(metainfo=dict(img_shape=(96, 64), scale_factor=(1, 1)))
            for _ in images
        ]
        with torch.no_grad():
            found = [s.pred_instances for s in model.predict(images, samples)]
        return [(f.bboxes, f.scores, f.labels) for f in found]

    with torch.no_grad(), calibrating(model):
        onnx_cut.network(model, images)
        if hasattr(model, 'roi_head'):
            predict()
    wanted = predict()
    with torch.no_grad():
        ours = onnx_cut.network(model, images)
    export_onnx(model, tmp_path / 'net.onnx', (3, 64, 64))
    network = OnnxNetwork(tmp_path / 'net.onnx')
    assert use_onnx(model, network) is model
    for module in (model.backbone, model.neck):
        for parameter in module.parameters():  # what the file stands for is not used
            parameter.data.fill_(float('nan'))
    # Fresh scores are close together: the last bits decide on their order.
    found = predict()
    assert all(len(f[0]) == 20 and f[0].isfinite().all() for f in found)
    onnx_cut.replace(model, lambda _: ours)
    torch.testing.assert_close(predict(), wanted, rtol=0, atol=0)


def test_a_classifier_whole(classifier, settled, tmp_path):
    model = settled(classifier())
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = [s.pred_score for s in model.predict(images)]
    export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32), containers='auto')
    network = OnnxNetwork(tmp_path / 'net.onnx', threads=1)
    assert network.names == ['cls_score']
    assert network.about['policy']['backbone.conv1'] == [8, 8]
    use_onnx(model, network)
    found = [s.pred_score for s in model.predict(images)]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r'\(3, 40, 32\).*\(3, 32, 32\)'):
        model.predict(torch.randn(1, 3, 40, 32))


def test_files_that_are_refused(classifier, settled, tmp_path):
    path = tmp_path / 'net.onnx'
    with pytest.raises(FileNotFoundError, match=r'net\.onnx'):
        OnnxNetwork(path)
    model = settled(classifier())
    export_onnx(model, path, (3, 32, 32))
    graph = onnx.load(path)

    def refused(data, words):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words) as error:
            OnnxNetwork(path)
        assert 'net.onnx' in str(error.value)

    refused(graph.SerializeToString()[:5000], 'cannot open')
    newer = copy.deepcopy(graph)
    newer.metadata_props[0].value = newer.metadata_props[0].value.replace(
        '"version": 2', '"version": 3'
    )
    refused(newer.SerializeToString(), 'format version 3')
    assert newer.metadata_props[0].key == FORMAT
    newer.metadata_props[0].value = '{"version": 1, "model": 3}'
    refused(newer.SerializeToString(), 'damaged: model: found 3')
    del newer.metadata_props[:]
    refused(newer.SerializeToString(), 'not written by this package')

    graph.metadata_props[0].value = graph.metadata_props[0].value.replace(
        'ImageClassifier', 'RetinaNet'
    )
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ValueError, match=r'from a RetinaNet.*ImageClassifier'):
        use_onnx(model, OnnxNetwork(path))
