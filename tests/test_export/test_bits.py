"""Packed codes: the documented layout bit by bit, and any width, shape and length."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.export.packed.bits import compress, expand, pack, packed_bytes, unpack

SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=4)


def stream_of(codes, bits):
    """The same layout, a bit at a time."""
    text = ''.join(format(int(c), f'0{bits}b')[::-1] for c in codes)
    text += '0' * (-len(text) % 8)
    return [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 8), SHAPES, st.integers(0, 2**32 - 1))
def test_any_width_and_shape(bits, shape, seed):
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(0, 2**bits, shape, dtype=np.uint8))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == stream_of(codes.reshape(-1), bits)
    assert len(packed) == packed_bytes(codes.numel(), bits)
    assert torch.equal(unpack(packed, bits, codes.shape), codes)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(0, 300))
def test_any_length(bits, count):
    codes = torch.arange(count) % 2**bits
    back = unpack(pack(codes, bits), bits, (count,))
    assert torch.equal(back.long(), codes)


def test_layout_that_the_documentation_shows():
    assert pack(torch.tensor([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 0b01]
    assert pack(torch.tensor([5, 3, 6]), 3).tolist() == [0b10011101, 0b1]


def test_takes_what_is_not_contiguous():
    codes = torch.randint(0, 8, (4, 6, 3)).permute(2, 0, 1)
    assert torch.equal(unpack(pack(codes, 3), 3, codes.shape).long(), codes)


@pytest.mark.parametrize('codes', [[-1], [8], [0, 9]])
def test_refuses_codes_out_of_range(codes):
    with pytest.raises(ValueError, match='at 3 bits are 0 to 7'):
        pack(torch.tensor(codes), 3)


@pytest.mark.parametrize('bits', [0, 9, 2.5])
def test_refuses_widths_out_of_range(bits):
    with pytest.raises(ValueError, match='accepted are 1 to 8'):
        pack(torch.zeros(3, dtype=torch.int64), bits)
    with pytest.raises(ValueError, match='accepted are 1 to 8'):
        unpack(torch.zeros(3, dtype=torch.uint8), bits, (3,))


@pytest.mark.parametrize('packed', [torch.zeros(2, dtype=torch.uint8), torch.zeros(3)])
def test_refuses_what_has_another_length_or_dtype(packed):
    with pytest.raises(ValueError, match=r'8 codes of 3 bits are \(3,\)'):
        unpack(packed, 3, (2, 4))


@pytest.mark.parametrize('bits', range(1, 9))
def test_compressed_codes_come_back(bits):
    generator = torch.Generator().manual_seed(bits)
    spread = 2 ** (bits - 1) + torch.randn(9, 40, generator=generator) * 2 ** (bits / 2)
    codes = spread.round().clamp(0, 2**bits - 1).to(torch.uint8)
    assert torch.equal(expand(compress(codes), bits, (9, 40)), codes)
    none = torch.zeros(0, 3, dtype=torch.uint8)
    assert expand(compress(none), bits, (0, 3)).shape == (0, 3)


def test_compressed_codes_that_are_refused():
    codes = torch.tensor([0, 1, 2, 3] * 50)
    stream = compress(codes)
    more = torch.cat([stream, stream[:1]])
    changed = stream.clone()
    changed[-1] ^= 1  # of the checksum
    for data, bits, shape in (
        (stream[:-5], 2, (200,)), (more, 2, (200,)), (stream, 1, (200,)),
        (stream, 2, (199,)), (stream, 2, (201,)), (changed, 2, (200,)),
        (stream[:0], 2, (200,)), (stream, 2, (0,)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r'^compressed codes: '):
            expand(data, bits, shape)
