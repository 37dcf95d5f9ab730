"""Levels in the types of ONNX, against the arithmetic that ONNX specifies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmmpq.export.onnx.levels import finer, limits, packed, store_levels

onnx = pytest.importorskip('onnx')

WIDTHS = st.integers(1, 8)


@given(
    WIDTHS, st.sampled_from(['symmetric', 'full', 'gaussian', 'unsigned']), st.data()
)
def test_the_same_values_in_a_type_of_onnx(bits, grid, data):
    """s (q - z) is s (q' - point) - s · rest for every level, and q' fits the type."""
    half = 2 ** (bits - 1)
    low, high = {
        'symmetric': (1 - half, half - 1),
        'full': (-half, half - 1),
        'gaussian': (1 - half, half),
        'unsigned': (0, 2**bits - 1),
    }[grid]
    zero = data.draw(st.sampled_from([0, 0.5, high / 2, 37.25, -3.0, high]))
    signed = data.draw(st.sampled_from([None, False]))
    at = store_levels(4 if bits <= 4 else 8, low, high, zero, signed)
    assert at.type[-1] == ('4' if bits <= 4 else '8')
    assert at.type[0] == ('u' if signed is False or low >= 0 else 'i')
    least, greatest = limits(at.type)
    assert least <= at.low <= at.high <= greatest
    assert least <= at.point <= greatest and at.point == int(at.point)
    assert (at.low, at.high) == (low - at.shift, high - at.shift)
    q = np.arange(low, high + 1)
    np.testing.assert_array_equal(q - zero, (q - at.shift - at.point) - at.rest)
    assert at.clipped == (high - low < greatest - least)


@pytest.mark.parametrize(
    ('levels', 'a_bits', 'fine'),
    [
        ((-2, 1), 2, 64),
        ((-2, 1), 8, 32),
        ((-1, 2), 2, 32),
        ((-7, 7), 4, 16),
        ((-127, 127), 8, 1),
        ((0, 3), 7, 32),
        ((0, 255), 8, 1),
    ],
)
def test_finer_scales_fit_the_type(levels, a_bits, fine):
    at = store_levels(8, *levels, 0)
    assert finer(at, a_bits) == fine
    low, high = limits(at.type)
    assert low <= fine * levels[0] and fine * levels[1] <= high


def test_zero_points_of_each_channel():
    at = store_levels(4, 0, 7, np.array([3.5, 2.0, 0.0]))
    np.testing.assert_array_equal(at.point, [3, 2, 0])
    np.testing.assert_array_equal(at.rest, [0.5, 0, 0])


@given(
    st.sampled_from(['int4', 'uint4', 'int8', 'uint8']),
    st.lists(st.integers(1, 5), max_size=3),
    st.randoms(use_true_random=False),
)
def test_onnx_reads_what_was_packed(kind, shape, random):
    low, high = limits(kind)
    size = int(np.prod(shape, dtype=int))
    values = np.array([random.randint(low, high) for _ in range(size)], np.int16)
    code = onnx.TensorProto.DataType.Value(kind.upper())
    tensor = onnx.TensorProto(
        dims=shape, data_type=code, raw_data=packed(values.reshape(shape), kind)
    )
    read = onnx.numpy_helper.to_array(tensor).astype(np.int16)
    np.testing.assert_array_equal(read, values.reshape(shape))
    assert len(tensor.raw_data) == -(-size * int(kind[-1]) // 8)
