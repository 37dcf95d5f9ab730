"""Number formats that torchvision's kernels do not take."""

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` in one format with a kernel: that of the first, or float32.

    bfloat16 has no kernel anywhere, float16 none on a CPU that every operator shares.
    """
    first = tensors[0]
    half = first.dtype == torch.bfloat16 or (
        first.dtype == torch.float16 and not first.is_cuda
    )
    dtype = torch.float32 if half else first.dtype
    return tuple(t.to(dtype) for t in tensors)
