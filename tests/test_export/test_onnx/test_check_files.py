"""What a target makes of the files that are exported for it, and for others."""

import pytest
import torch

from mmmpq.export.fold import fold_batchnorm
from mmmpq.layers import quantized_layers

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmmpq.export.latency.fused import integer_layers
from mmmpq.export.onnx.check.file import check_onnx
from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS
from mmmpq.export.onnx.graph import export_onnx


@pytest.fixture
def folded(classifier, settled):
    """A ResNet of one precision, its BatchNorms folded."""

    def make(policy, **fixed):
        model = settled(classifier(policy=policy, fixed={'*': None, **fixed}))
        fold_batchnorm(model, (3, 32, 32))
        return model

    return make


@pytest.mark.parametrize(
    ('target', 'policy'),
    [
        ('onnxruntime', 'W8A8'),
        ('openvino', 'W3A4'),
        ('generic', 'W4A4'),
        ('tensorrt', 'W8A7'),
    ],
)
def test_our_files_pass_for_their_own_target(target, policy, folded, path):
    model = folded(policy)
    images = [torch.randn(4, 3, 32, 32).numpy()]
    export_onnx(model, path, (3, 32, 32), target=target, images=images)
    found = check_onnx(path, target)
    assert found.ok, str(found)
    assert [v.name for v in found.verdicts] == list(quantized_layers(model))
    if target == 'tensorrt':
        assert check_onnx(path, 'openvino').ok
    else:
        assert not check_onnx(path, 'tensorrt').ok


def test_our_files_of_no_target(folded, path):
    """As many layers in float as ONNX Runtime leaves, and the very ones."""
    model = folded('W8A8')
    export_onnx(model, path, (3, 32, 32))
    found = check_onnx(path, 'onnxruntime')
    integers = {v.name for v in found.verdicts if v.does == INTEGERS}
    assert integers == integer_layers(path).keys() and not found.ok
    assert sum(v.type == 'Add' for v in found.verdicts) == 4


def test_float_layers_are_no_fault(folded, path):
    model = folded('W8A8', **{'backbone.conv1': (32, 32)})
    images = [torch.randn(4, 3, 32, 32).numpy()]
    export_onnx(model, path, (3, 32, 32), target='onnxruntime', images=images)
    found = check_onnx(path, 'onnxruntime')
    (first,) = [v for v in found.verdicts if v.name == 'backbone.conv1']
    assert found.ok and not first.quantized and first.does == FLOAT
