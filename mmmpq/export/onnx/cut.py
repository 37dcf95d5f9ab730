"""Where a toolbox model is cut: the network goes into a file, the rest stays Python.

A classifier is cut behind its head, a detector behind its dense head, a segmentor
behind its decode head. Scores, decoding, NMS, the second stage and the enlargement to
the image's size are the toolbox's own, before and after.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq import layers

# In this order: a two-stage detector has a first stage, whose head is cut off.
HEADS = ('rpn_head', 'bbox_head', 'decode_head', 'head')


class Features(tuple):
    """Feature maps, with what the head makes of them."""

    outputs: Any


def head_of(model: nn.Module) -> nn.Module:
    """The head behind which ``model`` is cut.

    Raises:
        ValueError: It has none, or is no model of features and a head.
    """
    for name in HEADS:
        head = getattr(model, name, None)
        if not isinstance(head, nn.Module) or not hasattr(model, 'extract_feat'):
            continue
        if hasattr(model, 'forward_transformer'):  # between features and head
            break
        if type(head).forward is not nn.Module.forward:  # else of a loss alone
            return head
    raise ValueError(
        f'model.type: {type(model).__name__} cannot be cut into network and decoding; '
        'accepted are classifiers with a head, one-stage detectors with a bbox_head, '
        'two-stage detectors with an rpn_head, and segmentors with a decode_head'
    )


def is_segmentor(model: nn.Module) -> bool:
    """Whether classes of pixels come out."""
    return head_of(model) is getattr(model, 'decode_head', None)


def is_detector(model: nn.Module) -> bool:
    """Whether boxes come out."""
    head = head_of(model)
    return head is not getattr(model, 'head', None) and not is_segmentor(model)


def takes_any_size(model: nn.Module) -> bool:
    """Whether images of any size come in: not into classifiers, nor where maps are
    pooled to a number of bins (PSPNet), for which a graph needs to know their size."""
    pools = (m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    return head_of(model) is not getattr(model, 'head', None) and all(
        pool.output_size in (1, (1, 1)) for pool in pools
    )


def network(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """What goes into a file: the head's outputs, and the features if more needs them.

    Args:
        model: A classifier, detector or segmentor.
        images: Preprocessed, (N, C, H, W).
    """
    features = model.extract_feat(images)
    tensors = {'outputs': head_of(model)(features)}
    if hasattr(model, 'roi_head'):
        tensors['features'] = features
    return tensors


def names(model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A name in the place of each tensor of :func:`network`.

    A dense head's outputs are called as the toolbox's ``predict_by_feat`` does, with
    the number of the level: 'cls_scores_0'. That of a segmentor is 'seg_logits', that
    of a classifier 'cls_score'.
    """
    outputs = tensors['outputs']
    decode = getattr(head_of(model), 'predict_by_feat', None)
    arguments = list(inspect.signature(decode).parameters) if decode else []
    if isinstance(outputs, Tensor):
        named = 'seg_logits' if is_segmentor(model) else 'cls_score'
    elif isinstance(outputs, (list, tuple)) and len(outputs) <= len(arguments):
        named = [_named(v, n) for v, n in zip(outputs, arguments, strict=False)]
    else:
        named = _named(outputs, 'outputs')
    rest = {k: _named(v, k) for k, v in tensors.items() if k != 'outputs'}
    return {'outputs': named, **rest}


def leaves(values: Any) -> list[Any]:
    """Tensors, or names, of nested containers in order."""
    return [value for value in layers.leaves(values) if value is not None]


def replace(model: nn.Module, run: Callable[[Tensor], dict[str, Any]]) -> nn.Module:
    """Lets ``run`` stand for :func:`network` in ``model``, and returns the model.

    Args:
        model: A classifier, detector or segmentor, in evaluation.
        run: Images to a dict as :func:`network` gives it.
    """

    def extract_feat(images: Tensor, *_: Any, **__: Any) -> Features:
        with torch.no_grad():
            tensors = run(images)
        features = Features(tensors.get('features', ()))
        features.outputs = tensors['outputs']
        return features

    model.extract_feat = extract_feat
    head_of(model).forward = lambda features: features.outputs
    return model


def _named(values: Any, name: str) -> Any:
    if isinstance(values, Mapping):
        return {k: _named(v, f'{name}_{k}') for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [_named(v, f'{name}_{i}') for i, v in enumerate(values)]
    return None if values is None else name
