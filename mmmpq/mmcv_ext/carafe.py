"""CARAFE: upsampling by a kernel of its own for every output pixel.

*CARAFE: Content-Aware ReAssembly of FEatures*, 2019, arXiv 1905.02188. With k the
kernel size, r = k//2, s the factor, g(c) the group of channel c:
output[c, y, x] = Σ_ij features[c, y//s + i - r, x//s + j - r] · masks[g(c), ij, y, x]
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes ``output`` (N, C, sH, sW).

    Args:
        features: (N, C, H, W), zero outside.
        masks: (N, groups · k², sH, sW).
    """
    output.zero_()
    cells = _cells(output, group_size, scale_factor)
    kernels = _kernels(masks, kernel_size, group_size, scale_factor)
    padded = _padded(features, kernel_size)
    for position, (rows, columns) in enumerate(_windows(features, kernel_size)):
        seen = padded[:, :, rows, columns].unflatten(1, (group_size, -1))
        cells.addcmul_(seen[:, :, :, :, None, :, None], kernels[:, :, position])


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the gradients of features and masks."""
    grad = _cells(top_grad, group_size, scale_factor)
    kernels = _kernels(masks, kernel_size, group_size, scale_factor)
    mask_cells = _kernels(mask_grad, kernel_size, group_size, scale_factor)
    padded = _padded(features, kernel_size)
    total = padded.new_zeros(padded.shape)
    for position, (rows, columns) in enumerate(_windows(features, kernel_size)):
        seen = padded[:, :, rows, columns].unflatten(1, (group_size, -1))
        mask_cells[:, :, position] = (grad * seen[:, :, :, :, None, :, None]).sum(
            2, keepdim=True
        )
        total[:, :, rows, columns] += (
            (grad * kernels[:, :, position]).sum((4, 6)).flatten(1, 2)
        )
    border = kernel_size // 2
    height, width = features.shape[2:]
    bottom_grad.copy_(total[:, :, border : border + height, border : border + width])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As ``carafe_naive_forward``; ``rfeatures`` keeps the features for backward."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As ``carafe_naive_backward``."""
    carafe_naive_backward(
        top_grad,
        rfeatures,
        masks,
        bottom_grad,
        mask_grad,
        kernel_size,
        group_size,
        scale_factor,
    )


def _cells(x: Tensor, groups: int, scale: int) -> Tensor:
    """(N, C, sH, sW) -> (N, groups, C / groups, H, s, W, s), the same memory."""
    n, c, height, width = x.shape
    return x.view(n, groups, c // groups, height // scale, scale, width // scale, scale)


def _kernels(masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    """(N, groups · k², sH, sW) -> (N, groups, k², 1, H, s, W, s), the same memory."""
    n, _, height, width = masks.shape
    return masks.view(
        n, groups, kernel_size**2, 1, height // scale, scale, width // scale, scale
    )


def _padded(features: Tensor, kernel_size: int) -> Tensor:
    return F.pad(features, [kernel_size // 2] * 4)


def _windows(features: Tensor, kernel_size: int) -> Iterator[tuple[slice, slice]]:
    """What each of the k² positions sees of the padded features."""
    height, width = features.shape[2:]
    for y in range(kernel_size):
        for x in range(kernel_size):
            yield slice(y, y + height), slice(x, x + width)
