"""What every layer of a model computes at a fixed reference input."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmmpq.costs.copies import copies
from mmmpq.costs.dry_run import dry_run, is_detector
from mmmpq.costs.layer_types import layer_shape, layer_type, weights_of
from mmmpq.costs.tally import Call, Tally

_DEFAULT_PROPOSALS = 1000


@dataclass(frozen=True)
class LayerProfile:
    """One layer at the reference input.

    Attributes:
        name (str): Its name in ``model.named_modules()``.
        type (str): Its family, see :mod:`mmmpq.costs.layer_types`.
        macs (int): Multiply-accumulates, summed over its calls.
        weights (int): Elements of its weight, counted once however often it is called,
            and for the first of layers that share it.
        activations (int): Elements of its inputs, summed over its calls.
        calls (int): How often one forward calls it (0: never).
        shape (dict): ``in_channels``, ``out_channels``, ``kernel_size``, ``stride``,
            ``groups``; ``input_size``, the spatial size of its first call; and
            ``input_sizes``, a dict from each spatial size to the number of inputs
            (images, RoIs, windows) of that size.
    """

    name: str
    type: str
    macs: int
    weights: int
    activations: int
    calls: int
    shape: dict = field(hash=False)


def reference_input_shape(model: nn.Module) -> tuple[int, int, int]:
    """(3, 800, 1333) for mmdet's detectors, the crop that mmseg's segmentors train on,
    which their preprocessor knows, and (3, 224, 224) for everything else."""
    if is_detector(model):
        return 3, 800, 1333
    crop = getattr(getattr(model, 'data_preprocessor', None), 'size', None)
    return (3, *crop) if crop else (3, 224, 224)


def profile(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    proposals: int | None = None,
) -> list[LayerProfile]:
    """Count every conv and linear layer in one dry forward of one image.

    The image is padded up to a multiple of ``model.data_preprocessor``'s
    ``pad_size_divisor``, which is what the network really runs on: 800x1333 becomes
    800x1344 in most detectors. A model that does not run at that size, but does on
    multiples of 32 (RTMDet), is given those. The forward runs in eval mode without
    gradients; the arithmetic of convolutions and matrix products is left out (zeros
    of the right shape take its place), so it takes about a second. Training flags,
    BatchNorm statistics and the random state are as before when it returns.

    What two-stage detectors do per RoI is counted for ``proposals`` reference boxes,
    whatever the RPN would propose, except where the proposals carry features of
    their own (Sparse R-CNN). In a 'tensor' forward mmdet's ``StandardRoIHead`` sends
    at most 100 boxes through its mask branch, and so does the count.

    Only layers are counted: products of two activations (attention maps, dynamic
    convolutions) are not.

    Args:
        model: A toolbox model or any module that takes (N, C, H, W).
        input_shape: (C, H, W) of the image. Default: :func:`reference_input_shape`.
        proposals: Reference number of RoIs per image. Default:
            ``model.test_cfg.rpn.max_per_img``, else 1000.

    Returns:
        list[LayerProfile]: In the order of the first calls, then the uncalled ones.

    Raises:
        ValueError: If the model cannot run on such an input alone.

    Examples:
        >>> import torchvision
        >>> layers = profile(torchvision.models.resnet18(), (3, 224, 224))
        >>> sum(layer.macs for layer in layers) / 1e6
        1814.073344
    """
    call = reference_call(model, input_shape, proposals)
    names = counted_layers(model)
    tally = Tally()
    handles = tally.watch(names)
    try:
        dry_run(model, *call, tally)
    finally:
        for handle in handles:
            handle.remove()
    modules = {name: module for module, name in reversed(names.items())}
    modules = dict(reversed(modules.items()))  # of copies the first one
    called = list(tally.calls)
    order = called + [name for name in modules if name not in tally.calls]
    seen = set()  # weights, of which several layers may have one
    profiles = []
    for name in order:
        weight = modules[name]._parameters.get('weight', name)
        call = tally.calls.get(name)
        profiles.append(
            _layer_profile(name, modules[name], call, id(weight) not in seen)
        )
        seen.add(id(weight))
    return profiles


def reference_call(
    model: nn.Module, input_shape: Sequence[int] | None, proposals: int | None
) -> tuple[tuple[int, ...], int]:
    """Input shape and number of RoIs as given, or what the model has for default."""
    input_shape = checked_shape(input_shape, 'cost', sides=None)
    input_shape = input_shape or reference_input_shape(model)
    if checked_proposals(proposals, 'cost') is None:
        proposals = _default_proposals(model)
    return input_shape, proposals


def counted_layers(model: nn.Module) -> dict[nn.Module, str]:
    """The layers that are counted, with their names; those of a copy, such as a
    teacher, have the names of what they copy, and so count once."""
    original = copies(model)
    return {
        module: original.get(name, name)
        for name, module in model.named_modules()
        if layer_type(module) is not None and not _inside_attention(model, name)
    }


def _layer_profile(
    name: str, module: nn.Module, call: Call | None, first: bool
) -> LayerProfile:
    call = call or Call(0, 0, 0, Counter())
    shape = layer_shape(module)
    shape['input_size'] = next(iter(call.sizes), None)
    shape['input_sizes'] = dict(call.sizes)
    return LayerProfile(
        name=name,
        type=layer_type(module),
        macs=call.macs,
        weights=weights_of(module) if first else 0,
        activations=call.activations,
        calls=call.calls,
        shape=shape,
    )


def _inside_attention(model: nn.Module, name: str) -> bool:
    """``nn.MultiheadAttention`` never calls its ``out_proj``: it is counted whole."""
    parent = model.get_submodule(name.rpartition('.')[0])
    return name != '' and isinstance(parent, nn.MultiheadAttention)


def _default_proposals(model: nn.Module) -> int:
    test_cfg = getattr(model, 'test_cfg', None) or {}
    rpn = test_cfg.get('rpn') if hasattr(test_cfg, 'get') else None
    return (rpn or {}).get('max_per_img', _DEFAULT_PROPOSALS)


def checked_shape(
    shape: Any, where: str, sides: int | None = 3
) -> tuple[int, ...] | None:
    """(C, H, W), or None; raises ValueError that begins with ``where``."""
    if shape is None:
        return None
    if (
        not isinstance(shape, Sequence)
        or len(shape) != (sides or len(shape))
        or not all(_positive_int(length) for length in shape)
    ):
        raise ValueError(
            f'{where}: input_shape is {shape!r}; needed are three positive ints '
            '(C, H, W) such as (3, 224, 224)'
        )
    return tuple(shape)


def checked_proposals(proposals: Any, where: str) -> int | None:
    """A number of RoIs, or None; raises ValueError that begins with ``where``."""
    if proposals is not None and not _positive_int(proposals):
        raise ValueError(f'{where}: proposals is {proposals!r}; needed is an int > 0')
    return proposals


def _positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
