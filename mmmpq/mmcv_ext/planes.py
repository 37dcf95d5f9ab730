"""What both RoI poolings do backward: gradients back to the pixels they came from."""

import torch
from torch import Tensor


def add_at(total: Tensor, rois: Tensor, place: Tensor, values: Tensor) -> None:
    """Adds ``values`` to the images of their RoIs, in place.

    Args:
        total: (N, C, H, W), contiguous.
        rois: (K, 5), the first column is the index in the batch.
        place: Flat pixels (K, C, H', W').
        values: (K, C, H', W').
    """
    c, height, width = total.shape[1:]
    planes = rois[:, 0].long()[:, None] * c + torch.arange(c, device=total.device)
    index = planes[:, :, None, None] * (height * width) + place
    total.view(-1).index_add_(0, index.flatten(), values.flatten())
