"""Multi-scale deformable attention: weighted samples of several feature maps.

*Deformable DETR*, 2020, arXiv 2010.04159. mmcv calls this on GPUs only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Σ over levels and points of weight · value at the point, (N, Q, heads · D).

    Args:
        value: (N, keys, heads, D), the maps one after the other, each by rows.
        spatial_shapes: (levels, 2), height and width of each map.
        sampling_loc: (N, Q, heads, levels, points, 2): (x, y) in 0 … 1 of the map.
        attn_weight: (N, Q, heads, levels, points).
    """
    n, _, heads, dims = value.shape
    queries = sampling_loc.shape[1]
    shapes = [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (N · heads, D, keys)
    grids = (2 * sampling_loc - 1).transpose(1, 2).flatten(0, 1)
    samples = []
    levels = maps.split([h * w for h, w in shapes], dim=2)
    for level, ((h, w), plane) in enumerate(zip(shapes, levels, strict=True)):
        samples.append(
            F.grid_sample(
                plane.unflatten(2, (h, w)), grids[:, :, level], align_corners=False
            )
        )  # (N · heads, D, Q, points)
    weights = attn_weight.transpose(1, 2).flatten(3).flatten(0, 1).unsqueeze(1)
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(n, heads * dims, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the three gradients; the forward pass is computed again."""
    inputs = [t.detach().requires_grad_() for t in (value, sampling_loc, attn_weight)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], spatial_shapes, level_start_index, *inputs[1:], im2col_step
        )
    grads = torch.autograd.grad(output, inputs, grad_output.view_as(output))
    targets = grad_value, grad_sampling_loc, grad_attn_weight
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)
