"""Integers, scales and zero points against the fake-quantized tensors themselves."""

import pytest
import torch

from mmmpq.export.integers import activation_levels, weight_integers, weight_levels
from mmmpq.layers import QuantConv2d, QuantLinear

WEIGHTS = {
    'learned': dict(type='LinearQuantizer'),
    'per channel': dict(type='LinearQuantizer', per_channel=True),
    'scale_clip': dict(type='LinearQuantizer', range='scale_clip'),
    'lsq': dict(type='LSQQuantizer'),
    'lsq per channel': dict(type='LSQQuantizer', per_channel=True),
    'dorefa': dict(type='DoReFaQuantizer'),
    'dorefa rescaled': dict(type='DoReFaQuantizer', rescale=True),
    'gaussian': dict(type='GaussianQuantizer'),
    'plus': dict(type='LSQPlusQuantizer'),
    'plus per channel': dict(type='LSQPlusQuantizer', per_channel=True),
}
ACTIVATIONS = [
    dict(type='LinearQuantizer'),
    dict(type='LinearQuantizer', range='scale_clip'),
    dict(type='LSQQuantizer'),
    dict(type='PACTQuantizer'),
    dict(type='GaussianQuantizer', normalised=False),
    dict(type='LSQPlusQuantizer'),
]


def conv(w_bits, a_bits=8, sample=None, **quant):
    torch.manual_seed(w_bits)
    layer = QuantConv2d(4, 6, 3, w_bits=w_bits, a_bits=a_bits, **quant)
    layer.calibrate([torch.randn(200) if sample is None else sample])
    return layer.eval()


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('name', WEIGHTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_are_scaled_integers_exactly(name, bits, dtype):
    if bits == 1 and name[:3] not in ('dor', 'gau'):
        return
    layer = conv(bits, w_quantizer=WEIGHTS[name]).to(dtype)
    q, scale, zero = weight_integers(layer)
    assert q.dtype in (torch.int8, torch.int16) and q.shape == layer.weight.shape
    low, high = weight_levels(layer)
    assert low <= int(q.min()) and int(q.max()) <= high and high - low < 2**bits
    assert scale.dtype == torch.float32 and (scale > 0).all()
    assert scale.shape == ((6, 1, 1, 1) if 'channel' in name else ())
    assert (zero is None) == (
        name[:3] not in ('dor', 'gau') and not (name[:3] == 'plu' and bits <= 3)
    )
    value = scale * (q - (0 if zero is None else zero))
    assert torch.equal(value.to(dtype), layer.w_quantizer(layer.weight, bits))


def test_a_channel_of_zeros():
    layer = conv(3, w_quantizer=WEIGHTS['per channel'])
    layer.weight.data[2] = 0
    q, scale, zero = weight_integers(layer)
    assert zero is None and not q[2].any() and (scale > 0).all()


@pytest.mark.parametrize('quantizer', ACTIVATIONS)
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_activations_follow_their_levels(quantizer, signed, bits):
    sample = torch.randn(500) if signed else torch.rand(500)
    layer = conv(4, bits, sample, a_quantizer=quantizer).train()
    scale, zero, low, high = activation_levels(layer)
    layer.eval()  # and nothing above has been averaged
    x = 3 * torch.randn(2, 4, 8, 8)
    q = (x * (1 / torch.tensor(scale)) + zero).clamp(low, high).round()
    assert torch.equal((q - zero) * torch.tensor(scale), layer.a_quantizer(x, bits))
    assert (low < zero) == signed and high - low < 2**bits


def test_float_has_no_integers():
    layer = QuantLinear(3, 2, w_bits=32, a_bits=32)
    assert weight_integers(layer) is None and activation_levels(layer) is None


def test_refuses_what_is_not_calibrated():
    layer = QuantLinear(3, 2, w_bits=4, a_bits=4)
    for find in (weight_integers, activation_levels):
        with pytest.raises(ValueError, match=r'not calibrated.*checkpoint'):
            find(layer)


def test_refuses_uneven_levels():
    layer = conv(4)
    layer.w_quantizer.forward = lambda x, bits: x.exp()
    with pytest.raises(ValueError, match='LinearQuantizer: its weights are not'):
        weight_integers(layer)
