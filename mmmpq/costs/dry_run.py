"""One forward of a model on one image, without arithmetic and without traces."""

import contextlib
import math
from collections.abc import Iterator

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmmpq.costs.tally import Tally
from mmmpq.randomness import isolated_randomness

# mmdet's RoI heads cut their mask branches at 100 boxes in a 'tensor' forward: two
# runs beyond that number give every layer's value and its growth per box.
_ROIS = (101, 102)
_STRIDE = 32  # of the coarsest feature map that most networks add to a finer one


def dry_run(
    model: nn.Module,
    input_shape: tuple,
    proposals: int,
    tally: Tally,
    watch: contextlib.AbstractContextManager | None = None,
) -> None:
    """Run ``model`` once; ``tally`` must already listen to its layers.

    Args:
        model: See :func:`mmmpq.costs.profile.profile`, as for the other arguments.
        input_shape: (C, H, W) before padding.
        proposals: Reference number of RoIs per image.
        tally: Its counts of a RoI head are extrapolated to ``proposals`` boxes.
        watch: A mode that sees the operations.

    Raises:
        ValueError: The forward fails.
    """
    cuda_devices = {p.device for p in model.parameters() if p.device.type == 'cuda'}
    with contextlib.ExitStack() as stack:
        for context in (
            torch.no_grad(),
            isolated_randomness(devices=cuda_devices),
            _eval_mode(model),
            _float_mode(model),
            _reference_proposals(model, proposals, tally),
            _NoArithmetic(),
            watch or contextlib.nullcontext(),
        ):
            stack.enter_context(context)
        _dry_forward(model, input_shape, tally)


def is_detector(model: nn.Module) -> bool:
    """Whether the model's class is mmdet's or derives from one of mmdet's."""
    return any(cls.__module__.startswith('mmdet.') for cls in type(model).__mro__)


def _dry_forward(model: nn.Module, input_shape: tuple, tally: Tally) -> None:
    """Run the model in the first of the ways in which it runs at all."""
    divisor = getattr(getattr(model, 'data_preprocessor', None), 'pad_size_divisor', 1)
    modes = ('tensor', 'predict') if isinstance(model, BaseModel) else (None,)
    if hasattr(getattr(model, 'rpn_head', None), 'init_proposal_features'):
        modes = modes[::-1]  # Sparse R-CNN's 'tensor' mode is its training forward
    if modes[0] and not is_detector(model):
        modes = (*modes, 'loss')  # SparK has no other
    first_error = None
    for step in dict.fromkeys((divisor, math.lcm(divisor, _STRIDE))):
        for mode in modes:
            tally.calls.clear()
            try:
                _forward(model, input_shape, step, mode)
                return
            except Exception as error:
                first_error = first_error or error
    raise ValueError(
        f'cannot profile {type(model).__name__}: its forward on one image of shape '
        f'{input_shape}, padded to a multiple of {divisor}, failed with '
        f'{type(first_error).__name__}: {first_error}'
    ) from first_error


def _forward(
    model: nn.Module, input_shape: tuple, divisor: int, mode: str | None
) -> None:
    channels, *size = input_shape
    padded = [-(-length // divisor) * divisor for length in size]
    like = next(model.parameters(), torch.empty(0))
    image = like.new_zeros((1, channels, *padded))
    if mode is None:
        model(image)
    else:
        model(image, _data_samples(model, image, size), mode=mode)


def _data_samples(model: nn.Module, image: Tensor, size: list) -> list | None:
    if not is_detector(model):
        return None
    from mmdet.structures import DetDataSample

    padded = tuple(image.shape[-2:])
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            img_shape=tuple(size),
            ori_shape=tuple(size),
            pad_shape=padded,
            batch_input_shape=padded,
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=image.new_zeros(0, 4), labels=image.new_zeros(0, dtype=torch.long)
    )
    if hasattr(model, 'roi_head') and getattr(model, 'rpn_head', None) is None:
        sample.proposals = _boxes(image, 1)  # Fast R-CNN is given its proposals
    return [sample]


def _boxes(like: Tensor, count: int) -> InstanceData:
    """``count`` small boxes: small, because RoIAlign samples large ones densely."""
    return InstanceData(
        bboxes=like.new_tensor([[0.0, 0.0, 16.0, 16.0]]).repeat(count, 1),
        scores=like.new_ones(count),
        labels=like.new_zeros(count, dtype=torch.long),
    )


@contextlib.contextmanager
def _reference_proposals(
    model: nn.Module, proposals: int, tally: Tally
) -> Iterator[None]:
    """Feed ``proposals`` boxes to ``model.roi_head`` instead of the RPN's.

    Beyond :data:`_ROIS` boxes every sum is linear in their number, with slope zero for
    what runs once per image (HTC's semantic head) or on a capped number of boxes.
    """
    roi_head = getattr(model, 'roi_head', None)
    if not isinstance(roi_head, nn.Module):
        yield
        return
    rpn_head = getattr(model, 'rpn_head', None)
    patched = [
        (module, 'predict_by_feat', _one_box_per_image)
        for module in (rpn_head.modules() if rpn_head is not None else ())
        if hasattr(module, 'predict_by_feat')
    ]
    patched += [
        (roi_head, name, _extrapolated(getattr(roi_head, name), proposals, tally))
        for name in ('forward', 'predict')
        if hasattr(roi_head, name)
    ]
    for module, name, function in patched:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, _ in patched:
            delattr(module, name)


def _one_box_per_image(*outs, batch_img_metas, **kwargs) -> list[InstanceData]:
    like = outs[0]
    while not isinstance(like, Tensor):
        like = like[0]
    return [_boxes(like, 1) for _ in batch_img_metas]


def _extrapolated(run, proposals: int, tally: Tally):
    """Wrap a RoI head's ``forward``: count it for ``proposals`` boxes per image."""

    def wrapped(x, rpn_results_list, *args, **kwargs):
        if any('features' in results for results in rpn_results_list):
            for results in rpn_results_list:
                results.bboxes = _boxes(results.bboxes, len(results)).bboxes
            return run(x, rpn_results_list, *args, **kwargs)
        like = rpn_results_list[0].bboxes
        runs = []
        for count in _ROIS if proposals > _ROIS[-1] else (proposals,):
            boxes = [_boxes(like, count) for _ in rpn_results_list]
            with tally.apart() as calls:
                out = run(x, boxes, *args, **kwargs)
            runs.append(calls)
        steps = max(proposals - _ROIS[-1], 0)
        for name, call in runs[-1].items():
            tally.add(name, call.grow(runs[0][name], steps))
        return out

    return wrapped


class _NoArithmetic(TorchDispatchMode):
    """Convolutions, matrix products and resampling return zeros of the right shape."""

    skipped = {
        torch.ops.aten.convolution.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten.grid_sampler_2d.default,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self.skipped:
            return func(*args, **kwargs)
        shapes = [a.to('meta') if isinstance(a, Tensor) else a for a in args]
        return args[0].new_zeros(func(*shapes, **kwargs).shape)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()``, and back by hand: a toolbox's ``train()`` freezes stages."""
    training = {module: module.training for module in model.modules()}
    trained = {param: param.requires_grad for param in model.parameters()}
    try:
        model.eval()
        yield
    finally:
        model.train(model.training or any(training.values()))
        for module, flag in training.items():
            module.training = flag
        for param, flag in trained.items():
            param.requires_grad = flag


def _float_mode(model: nn.Module):
    """Our own layers compute as plain float ones; plain models need nothing."""
    if not any(type(m).__module__.startswith('mmmpq.layers') for m in model.modules()):
        return contextlib.nullcontext()
    from mmmpq.layers import float_mode

    return float_mode(model)
