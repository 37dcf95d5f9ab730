"""RoIPool: the maximum over the pixels that a bin touches.

*Fast R-CNN*, 2015, arXiv 1504.08083. mmcv's borders: a RoI from x1 to x2 + 1, scaled,
not rounded; a bin has the pixels from its floor to its ceiling.
"""

import torch
from torch import Tensor

from .dtypes import widened
from .planes import add_at


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Writes ``output`` (K, C, H', W') and ``argmax``, flat pixels, -1 for none.

    Args:
        input: (N, C, H, W).
        rois: (K, 5): index in the batch, x1, y1, x2, y2 in pixels of the image.
    """
    features, boxes = widened(input, rois)
    height, width = features.shape[2:]
    low = boxes[:, 1:3] * spatial_scale
    extent = (boxes[:, 3:] + 1) * spatial_scale - low
    for k, empty in enumerate((extent <= 0).any(1).tolist()):
        if empty:  # mmcv leaves output and argmax as they are: zeros
            continue
        rows = _spans(low[k, 1], extent[k, 1], pooled_height, height)
        columns = _spans(low[k, 0], extent[k, 0], pooled_width, width)
        plane = features[int(boxes[k, 0])]
        # the first maximum in reading order: first in each row, then of the rows
        across, x = _span_max(plane, columns)  # (C, H, W')
        best, y = _span_max(across.transpose(1, 2), rows)  # (C, W', H')
        x = x.transpose(1, 2).gather(2, y)
        none = best == -torch.inf
        output[k] = best.masked_fill(none, 0).transpose(1, 2).to(output.dtype)
        argmax[k] = (y * width + x).masked_fill(none, -1).transpose(1, 2).int()


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Writes the gradient of ``input`` to ``grad_input`` (N, C, H, W)."""
    grad = widened(grad_output)[0].masked_fill(argmax < 0, 0)
    total = grad.new_zeros(grad_input.shape)
    add_at(total, rois, argmax.long().clamp(min=0), grad)
    grad_input.copy_(total)


def _spans(low: Tensor, extent: Tensor, bins: int, size: int) -> Tensor:
    """First pixel and the one after the last of every bin, (bins, 2)."""
    step = extent / bins
    i = torch.arange(bins, device=low.device)
    first, end = (i * step + low).floor(), ((i + 1) * step + low).ceil()
    return torch.stack([first, end], 1).long().clamp(0, size)


def _span_max(x: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of the last dimension over every span (-inf: empty), its first place.

    (C, A, B), spans (S, 2) -> (C, A, S) twice.
    """
    first, end = spans.T
    longest = max(int((end - first).max()), 1)
    place = first[:, None] + torch.arange(longest, device=x.device)  # (S, longest)
    outside = place >= end[:, None]
    place = place.clamp(max=x.shape[-1] - 1)
    values = x[..., place].masked_fill(outside, -torch.inf)
    best = values.amax(-1, keepdim=True)
    at = (values == best).to(torch.uint8).argmax(-1, keepdim=True)
    return best[..., 0], place.expand(values.shape).gather(-1, at)[..., 0]
