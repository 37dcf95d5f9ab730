"""RoIAlign: a grid of bilinear samples a bin, their mean or their maximum.

*Mask R-CNN*, 2017, arXiv 1703.06870.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .dtypes import widened
from .planes import add_at

MAX = 0  # mmcv's pool_mode; the mean is 1
EMPTY = -10000.0  # what mmcv gives for the maximum of no sample


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes ``output`` (K, C, H', W') and, for the maximum, where each was sampled.

    Args:
        input: (N, C, H, W).
        rois: (K, 5): index in the batch, x1, y1, x2, y2 in pixels of the image.
        argmax_y: (K, C, H', W'), written for the maximum: y of the sample, in pixels of
            ``input``; -1 where there is none.
        argmax_x: Its x.
        sampling_ratio: Samples a bin and direction; 0: one a pixel, rounded up.
        aligned: Whether pixel centres lie at .5 (shifts RoIs by half a pixel).
    """
    size = aligned_height, aligned_width
    features, boxes = widened(input, rois)
    if aligned and not rois.is_cuda and (boxes[:, 3:] < boxes[:, 1:3]).any():
        raise ValueError('RoIAlign: found RoIs with x2 < x1 or y2 < y1')
    if pool_mode != MAX:
        output.copy_(
            _mean(features, boxes, spatial_scale, size, sampling_ratio, aligned)
        )
        return
    low, bins = _bins(boxes, spatial_scale, size, aligned)
    for (grid_y, grid_x), k in _grids(bins, sampling_ratio):
        if grid_y * grid_x == 0:
            output[k], argmax_y[k], argmax_x[k] = EMPTY, -1, -1
            continue
        fine = aligned_height * grid_y, aligned_width * grid_x  # one sample a bin
        samples = _mean(features, boxes[k], spatial_scale, fine, 1, aligned)
        best, flat = F.max_pool2d(samples, (grid_y, grid_x), return_indices=True)
        output[k] = best.to(output.dtype)
        step = (bins[k] / bins.new_tensor([grid_y, grid_x]))[:, :, None, None, None]
        start = low[k][:, :, None, None, None]
        argmax_y[k] = (start[:, 0] + (flat // fine[1] + 0.5) * step[:, 0]).to(
            output.dtype
        )
        argmax_x[k] = (start[:, 1] + (flat % fine[1] + 0.5) * step[:, 1]).to(
            output.dtype
        )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the gradient of ``input`` to ``grad_input`` (N, C, H, W)."""
    grad, boxes = widened(grad_output, rois)
    if pool_mode != MAX:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad.contiguous(),
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                *grad_input.shape,
                sampling_ratio,
                aligned,
            )
        )
        return
    total = grad.new_zeros(grad_input.shape)
    where = argmax_y.to(grad.dtype), argmax_x.to(grad.dtype)
    for place, weight in _corners(*where, *grad_input.shape[2:]):
        add_at(total, boxes, place, grad * weight)
    grad_input.copy_(total)


def _mean(
    features: Tensor,
    boxes: Tensor,
    scale: float,
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return torch.ops.torchvision.roi_align(
        features, boxes, scale, *size, sampling_ratio, aligned
    )


def _bins(
    boxes: Tensor, scale: float, size: tuple[int, int], aligned: bool
) -> tuple[Tensor, Tensor]:
    """Upper left corner (K, 2) as (y, x) and size of a bin (K, 2), in pixels."""
    shift = 0.5 if aligned else 0.0
    low = boxes[:, [2, 1]] * scale - shift
    extent = boxes[:, [4, 3]] * scale - shift - low
    if not aligned:
        extent = extent.clamp(min=1)
    return low, extent / extent.new_tensor(size)


def _grids(
    bins: Tensor, sampling_ratio: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """RoIs with the same number of samples (y, x) a bin, and their indices."""
    if sampling_ratio > 0:
        yield (sampling_ratio,) * 2, torch.arange(len(bins), device=bins.device)
        return
    grids, which = bins.ceil().long().unique(dim=0, return_inverse=True)
    for i, (grid_y, grid_x) in enumerate(grids.tolist()):
        yield (grid_y, grid_x), (which == i).nonzero()[:, 0]


def _corners(
    y: Tensor, x: Tensor, height: int, width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each sample, as flat indices, and their weights."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    inside &= y != -1  # no sample was taken
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    for bottom in (0, 1):
        for right in (0, 1):
            weight = ((y - top) if bottom else (1 - y + top)) * (
                (x - left) if right else (1 - x + left)
            )
            row = (top.long() + bottom).clamp(max=height - 1)
            column = (left.long() + right).clamp(max=width - 1)
            yield row * width + column, weight * inside
