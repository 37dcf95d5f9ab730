"""Convolutions with standardised weights: it is these that are quantized."""

from typing import Any

from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import Tensor, nn

from mmmpq.layers.base import QuantLayer
from mmmpq.layers.conv import _Conv
from mmmpq.layers.mixed import MixedLayer
from mmmpq.quantizers import StoredQuantizer


class _Standardised(_Conv):
    """conv(Q_a(x), Q_w(Ŵ)), Ŵ = (W - mean(W)) / std(W) of each output channel.

    A packed checkpoint holds the integers of Ŵ, and then ``weight`` is Ŵ itself.

    Source: Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization, 2019, arXiv 1903.10520.
    """

    affine = False  # a BatchNorm cannot be folded into W

    def _init_quant(self, *args: Any, **kwargs: Any) -> None:
        super()._init_quant(*args, **kwargs)
        if getattr(self, 'own', None):
            raise ValueError(
                'own_weights: accepted is False for a net with weight standardisation'
            )

    def _latent_weight(self) -> Tensor:
        if isinstance(self.w_quantizer, StoredQuantizer):
            return self.weight
        return self._standardised()


class _WS(_Standardised):
    def _standardised(self) -> Tensor:
        flat = self.weight.flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        return (self.weight - mean[:, None, None, None]) / (
            std[:, None, None, None] + self.eps
        )


class _AWS(_Standardised):
    def _standardised(self) -> Tensor:
        return self._get_weight(self.weight)


class QuantConvWS2d(_WS, QuantLayer, ConvWS2d, nn.Conv2d):
    __doc__ = QuantLayer.__doc__


class MixedConvWS2d(_WS, MixedLayer, ConvWS2d, nn.Conv2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConvWS2d


class QuantConvAWS2d(_AWS, QuantLayer, ConvAWS2d, nn.Conv2d):
    __doc__ = QuantLayer.__doc__


class MixedConvAWS2d(_AWS, MixedLayer, ConvAWS2d, nn.Conv2d):
    __doc__ = MixedLayer.__doc__
    fixed_class = QuantConvAWS2d


WEIGHT_STANDARDISED = {
    ConvWS2d: (MixedConvWS2d, QuantConvWS2d),
    ConvAWS2d: (MixedConvAWS2d, QuantConvAWS2d),
}
