"""What the metadata of an ONNX file say of the model: all that is needed around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.layers import QuantLayer

FORMAT = 'mmmpq-onnx'
VERSION = 2


def about_model(
    model: nn.Module,
    shape: Sequence[int],
    outputs: Mapping[str, Any],
    layers: Mapping[str, QuantLayer],
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """For JSON; docs/deploy.md says what the keys mean.

    Args:
        model: A toolbox model.
        shape: (C, H, W) of an image, in pixels.
        outputs: Names of the file's outputs, nested as :func:`.cut.names` does.
        layers: By name.
        classes: Their names, in the order of the labels.
    """
    return {
        'format': FORMAT,
        'version': VERSION,
        'model': type(model).__name__,
        'input_shape': list(shape),
        'outputs': outputs,
        'policy': {name: list(layer.precision) for name, layer in layers.items()},
        'end_to_end': False,
        'normalize': False,
        'classes': list(classes),
        'preprocessing': preprocessing(model),
        'decoding': decoding(model),
    }


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """What the model's preprocessor does to an image of the test pipeline."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    keys = '_channel_conversion', 'channel_conversion', 'to_rgb'
    swapped = any(getattr(preprocessor, key, False) for key in keys)
    normalizes = bool(getattr(preprocessor, '_enable_normalize', False))
    value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
    of_tests = getattr(preprocessor, 'test_cfg', None) or {}  # of mmseg
    divisor = getattr(preprocessor, 'pad_size_divisor', of_tests.get('size_divisor', 1))
    fill = (
        preprocessor.mean + preprocessor.std * value
        if normalizes
        else torch.tensor([value])
    )
    fill = fill.flatten().tolist()
    return {
        'channels': 'RGB' if swapped else 'BGR',
        'swap_channels': swapped,
        'mean': preprocessor.mean.flatten().tolist() if normalizes else None,
        'std': preprocessor.std.flatten().tolist() if normalizes else None,
        'pad_size_divisor': divisor,
        'pad_value': value,
        'fill': fill[::-1] if swapped else fill,  # becomes pad_value
    }


def decoding(model: nn.Module) -> dict[str, Any] | None:
    """How the outputs of a detector's dense head become boxes, or those of a segmentor
    classes of pixels; None of classifiers."""
    head = onnx_cut.head_of(model)
    if onnx_cut.is_segmentor(model):
        return {
            'head': type(head).__name__,
            'resize': 'bilinear',
            'align_corners': bool(head.align_corners),
            'score': 'softmax' if head.out_channels > 1 else 'sigmoid',
            'threshold': head.threshold,
            'test_cfg': _plain(getattr(model, 'test_cfg', None)),
        }
    if not onnx_cut.is_detector(model):
        return None
    priors = getattr(head, 'prior_generator', None)
    coder = getattr(head, 'bbox_coder', None)
    keys = ('means', 'stds', 'clip_border', 'add_ctr_clamp', 'ctr_clamp')
    return {
        'head': type(head).__name__,
        'score': 'sigmoid' if getattr(head, 'use_sigmoid_cls', True) else 'softmax',
        'strides': _plain(getattr(priors, 'strides', None)),
        'anchors': _plain(getattr(priors, 'base_anchors', None)),
        'offset': _plain(getattr(priors, 'offset', None)),
        'coder': coder
        and {
            'type': type(coder).__name__,
            **{key: _plain(getattr(coder, key)) for key in keys if hasattr(coder, key)},
        },
        'test_cfg': _plain(getattr(model, 'test_cfg', None)),
    }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return (
        value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    )
