"""Files, computed in ONNX Runtime as they are written."""

import pytest


@pytest.fixture
def tensors_of():
    """What a file has in float tensors, for images as an array."""
    onnx = pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    from mmmpq.export.onnx.ranges import watching

    def compute(path, names, x, level='ORT_ENABLE_BASIC'):  # which fuses nothing
        options = runtime.SessionOptions()
        options.graph_optimization_level = getattr(
            runtime.GraphOptimizationLevel, level
        )
        model = watching(onnx.load(path), names)
        session = runtime.InferenceSession(model.SerializeToString(), options)
        return dict(zip(names, session.run(names, {'images': x}), strict=True))

    return compute
