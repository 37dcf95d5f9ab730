"""Deformable convolutions, version 1 and, with a mask (modulated), version 2.

*Deformable Convolutional Networks*, 2017, arXiv 1703.06211; *Deformable ConvNets v2*,
2018, arXiv 1811.11168. Offsets are (y, x) pairs of every kernel position.
"""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .dtypes import widened


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Writes ``output`` (N, C', H', W') of ``input`` (N, C, H, W)."""
    geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    output.copy_(_forward(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Writes the gradients of input and offset, keeps that of weight in ``columns``.

    torchvision computes all three at once, and mmcv asks for the third with the same
    buffer right after.
    """
    geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    grads = _backward(gradOutput, input, weight, offset, None, geometry)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds ``scale`` times the gradient of the weight to ``gradWeight``."""
    grad = columns
    if columns.shape != gradWeight.shape:  # neither input nor offset has a gradient
        geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
        grad = _backward(gradOutput, input, gradWeight, offset, None, geometry)[1]
    gradWeight.add_(grad.to(gradWeight.dtype), alpha=scale)
    columns.resize_(0)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes ``output`` (N, C', H', W') of ``input`` (N, C, H, W)."""
    geometry = stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
    geometry += group, deformable_group
    bias = bias if with_bias else None
    offset, mask = (_leading(t, output.shape[2:]) for t in (offset, mask))
    output.copy_(_forward(input, weight, offset, mask, bias, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes the gradients of input, weight, bias, offset and mask."""
    geometry = stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
    geometry += group, deformable_group
    offset, mask = (_leading(t, grad_output.shape[2:]) for t in (offset, mask))
    grads = _backward(grad_output, input, weight, offset, mask, geometry)
    written = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        written.append(grad_bias)
    for target, grad in zip(written, grads, strict=False):
        if target.shape != grad.shape:
            whole = grad.new_zeros(target.shape)
            _leading(whole, grad.shape[2:]).copy_(grad)
            grad = whole
        target.copy_(grad)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    mask, bias, masked = _filled(input, weight, mask, bias)
    tensors = widened(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, masked)


def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    mask, bias, masked = _filled(input, weight, mask, None)
    tensors = widened(grad.contiguous(), input, weight, offset, mask, bias)
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, masked)


def _filled(
    input: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, bool]:
    """torchvision wants a mask and a bias; and whether the mask counts."""
    masked = mask is not None
    mask = mask if masked else input.new_zeros(input.shape[0], 1)
    return mask, input.new_zeros(weight.shape[0]) if bias is None else bias, masked


def _leading(x: Tensor, size: torch.Size) -> Tensor:
    """The first numbers of every image of ``x`` (N, C, …), as (N, C, H', W').

    mmcv reads offsets and masks by the size of the output, not by their own. DyHead
    gives it those of a map four times as large, and learns with what is read so.
    """
    if x.shape[2:] == size:
        return x
    return x.flatten(1)[:, : x.shape[1] * size.numel()].unflatten(1, (-1, *size))
