"""A convolution of which a part of the channels and of the kernel is in use."""

from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmpq.layers import MixedLayer, QuantConv2d, QuantLayer, quantizable
from mmmpq.layers.idle import with_idle
from mmmpq.quantizers import recomputing
from mmmpq.quantizers.base import Quantizer


def smaller_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """The centre (..., k, k) of kernels ``weight``, each times a matrix (k², k²)."""
    small = isqrt(len(matrix))
    margin = (weight.shape[-1] - small) // 2
    centre = weight[..., margin:-margin, margin:-margin].flatten(2)
    with torch.autocast(weight.device.type, enabled=False):
        return F.linear(centre, matrix).unflatten(2, (small, small))


class _Elastic:
    """The first channels and a smaller kernel of an ``nn.Conv2d``.

    ``in_channels``, ``out_channels``, ``groups``, ``kernel_size`` and ``padding`` are
    those in use; the weight is that of the largest layer. A kernel of size k out of one
    of size K is M_kK · centre(W_K), with a learned matrix M_kK (k², k²) for every step
    between neighbouring sizes that starts as the identity. What is quantized is the
    weight of all channels at the kernel in use; of the result, the first channels
    compute.

    Source: Once-for-All: Train One Network and Specialize it for Efficient Deployment,
    2020, arXiv 1908.09791; the order of quantizer and slice: BatchQuant, 2021, arXiv
    2105.08952.

    Args:
        in_channels, out_channels, kernel_size, **kwargs: Of the largest layer, as of
            ``nn.Conv2d``; the padding keeps the size, and groups are 1 or depthwise.
        kernels: Odd sizes that a kernel larger than 1 may take; default: its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *args: Any,
        kernels: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        largest = self.kernel_size[0]
        self.kernels = tuple(sorted({*kernels, largest})) if largest > 1 else (1,)
        self.depthwise = self.groups > 1
        for small, large in pairwise(self.kernels):
            matrix = nn.Parameter(torch.eye(small**2))
            self.register_parameter(f'matrix_{large}to{small}', matrix)

    def resize(
        self,
        in_channels: int | None = None,
        out_channels: int | None = None,
        kernel_size: int | None = None,
    ) -> None:
        """Puts the first channels and a kernel size to use; None: what is in use."""
        self.in_channels = in_channels or self.in_channels
        self.out_channels = out_channels or self.out_channels
        if self.depthwise:
            self.groups = self.in_channels
        if kernel_size:
            self.kernel_size = (kernel_size,) * 2
            self.padding = (kernel_size // 2,) * 2

    def _latent_weight(self) -> Tensor:
        """All channels, at the kernel in use: (C_out, C_in / groups, k, k)."""
        weight, idle = self.weight, []
        for large, small in pairwise(self.kernels[::-1]):
            matrix = getattr(self, f'matrix_{large}to{small}')
            if large <= self.kernel_size[0]:
                idle.append(matrix)
                continue
            weight = smaller_kernel(weight, matrix)
        return with_idle(weight, idle) if torch.is_grad_enabled() else weight

    def _once(self, make: Callable[[], Tensor], *state: Any) -> Tensor:
        matrices = [
            (m.data_ptr(), m._version)
            for name, m in self._parameters.items()
            if name.startswith('matrix_')
        ]
        return super()._once(make, *state, self.kernel_size, *matrices)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        active = weight[: self.out_channels, : self.in_channels // self.groups]
        bias = None if bias is None else bias[: self.out_channels]
        with recomputing(x, weight):
            return self._conv_forward(x, active, bias)

    @torch.no_grad()
    def settle(self) -> None:
        """Becomes the plain layer of the channels and the kernel in use, in place."""
        weight = self._latent_weight()
        weight = weight[: self.out_channels, : self.in_channels // self.groups]
        param = nn.Parameter(weight.clone(), self.weight.requires_grad)
        self._parameters['weight'] = param
        if self.bias is not None:
            bias = self.bias[: self.out_channels].clone()
            self.bias = nn.Parameter(bias, self.bias.requires_grad)
        for small, large in pairwise(self.kernels):
            delattr(self, f'matrix_{large}to{small}')
        del self.kernels, self.depthwise
        self.__dict__.pop('_quantized_weights', None)
        self.__class__ = self.plain


class QuantElasticConv2d(_Elastic, QuantLayer, nn.Conv2d):
    __doc__ = QuantLayer.__doc__
    plain = QuantConv2d

    @torch.no_grad()
    def settle(self) -> None:
        """As of the float layer.

        Raises:
            ValueError: The quantizer takes its range anew from the whole weight, so
                that a part of it alone is quantized to something else.
        """
        quantizer, bits = self.w_quantizer, self.precision.w_bits
        whole = quantizer(self._latent_weight(), bits)
        super().settle()
        _narrow(quantizer, self.out_channels)
        part = whole[: self.out_channels, : self.in_channels // self.groups]
        if not torch.equal(quantizer(self.weight, bits), part):
            raise ValueError(
                f'w_quantizer: found {type(quantizer).__name__}, whose range depends '
                'on the whole weight at every call, so that a subnet alone differs '
                'from the supernet; accepted are those with a learned one such as '
                'LSQQuantizer'
            )


class MixedElasticConv2d(_Elastic, MixedLayer, nn.Conv2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantElasticConv2d

    def _init_quant(self, *args: Any, **kwargs: Any) -> None:
        super()._init_quant(*args, **kwargs)
        if self.own:
            raise ValueError(
                'quant.own_weights: found for an elastic layer, whose candidates '
                'share one weight; accepted is False'
            )


class ElasticConv2d(_Elastic, nn.Conv2d):
    __doc__ = _Elastic.__doc__
    plain = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        return self.compute(input, self._latent_weight(), self.bias)


quantizable(ElasticConv2d, MixedElasticConv2d, QuantElasticConv2d)


def _narrow(quantizer: Quantizer, channels: int) -> None:
    """Keeps the first channels of a quantizer of weights per output channel."""
    if quantizer.channels == 1:
        return
    for name, param in list(quantizer.named_parameters(recurse=False)):
        first = nn.Parameter(param[:, :channels].clone(), param.requires_grad)
        setattr(quantizer, name, first)
    quantizer.channels = channels
