"""A grid that is given, against quantizers that find their own."""

import pytest
import torch

from mmmpq.quantizers import (
    DoReFaQuantizer,
    GaussianQuantizer,
    LinearQuantizer,
    StoredQuantizer,
)


def stored(quantizer, weight, bits):
    found = StoredQuantizer((bits,))
    scale, offset = quantizer.grids(weight, (bits,))
    zero = None if offset is None else offset[0]
    found.set_grid(scale[0], zero, quantizer.levels(bits))
    return found


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize(
    'quantizer',
    [
        lambda bits: LinearQuantizer([bits], 'weight', range='scale_clip'),
        lambda bits: DoReFaQuantizer([bits], 'weight', rescale=True),
        lambda bits: GaussianQuantizer([bits], 'weight'),
    ],
)
def test_weights_on_the_grid_stay(quantizer, bits):
    quantizer = quantizer(bits)
    weight = torch.randn(6, 4, 3, 3)
    once = quantizer(weight, bits)
    assert not torch.equal(quantizer(once, bits), once) or bits == 2
    assert torch.equal(stored(quantizer, weight, bits)(once, bits), once)


def test_one_grid_per_channel_and_its_state():
    found = StoredQuantizer((3,))
    scale = torch.rand(4, 1, 1, 1) + 0.1
    zero = torch.tensor([0.0, -1, 0, -1]).reshape(4, 1, 1, 1)
    found.set_grid(scale, zero, (-4, 3))
    weight = torch.randn(4, 2, 3, 3)
    wanted = ((weight / scale + zero).clamp(-4, 3).round() - zero) * scale
    torch.testing.assert_close(found(weight, 3), wanted)
    other = StoredQuantizer((3,))
    other.load_state_dict(found.state_dict())
    assert torch.equal(other(weight, 3), found(weight, 3))
    assert other.bounds.dtype == torch.int32  # of which NCCL and gloo broadcast
    assert other.levels(3) == (-4, 3) and not list(other.parameters())


def test_weights_train_on_the_grid():
    found = StoredQuantizer((2,))
    found.set_grid(torch.tensor(0.5), None, (-2, 1))
    weight = torch.tensor([-3.0, -0.4, 0.2, 3.0], requires_grad=True)
    found(weight, 2).sum().backward()
    assert weight.grad.tolist() == [0, 1, 1, 0]


def test_refuses_what_it_is_not_for():
    with pytest.raises(ValueError, match=r'weights at one width; found.*activation'):
        StoredQuantizer((4,), 'activation')
    with pytest.raises(ValueError, match='2 widths'):
        StoredQuantizer((2, 4))
    with pytest.raises(ValueError, match=r'no grid yet.*packed'):
        StoredQuantizer((4,))(torch.randn(3), 4)
