"""The two halves of a convolution that is computed at some pixels only."""

import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Writes what the kernel sees at M output pixels, ``col`` (C · kh · kw, M).

    Args:
        im: (1, C, H, W), zero outside.
        mask_h_idx: Rows of the pixels (M,).
        mask_w_idx: Their columns (M,).
    """
    right, below = max(pad_w, kernel_w), max(pad_h, kernel_h)
    padded = F.pad(im[0], (pad_w, right, pad_h, below))
    target = col.view(im.shape[1], kernel_h, kernel_w, -1)
    for y in range(kernel_h):
        for x in range(kernel_w):
            target[:, y, x] = padded[:, mask_h_idx + y, mask_w_idx + x]


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Writes ``col`` (C, M) to those pixels of ``im`` (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
