"""A quantizer's levels in the types of ONNX: type, zero point, and what they miss."""

from dataclasses import dataclass

import numpy as np

from mmmpq.policy import Precision

CONTAINERS = 'auto', '8bit'


@dataclass(frozen=True)
class Stored:
    """x̂ = s (q - z), q in qmin … qmax, as s (q' - point) - s · rest of ONNX.

    ONNX knows zero points of the stored type only. Levels beside zero, such as those
    of DoReFa with z = ½ (2^b - 1), leave a fraction that is added and taken away again
    around the pair of nodes; levels beyond the type's, such as -7 … 8 of four bits, or
    -7 … 7 in uint8, are stored shifted.

    Args:
        type: 'int4', 'uint4', 'int8', 'uint8' or, of inputs, 'int16' or 'uint16'.
        low, high: The levels q' of the true width.
        shift: q - q'.
        point: Zero point of that type; a number, or one for each channel.
        rest: z - shift - point, of the shape of ``point``.
    """

    type: str
    low: int
    high: int
    shift: int
    point: np.ndarray
    rest: np.ndarray

    @property
    def clipped(self) -> bool:
        """Whether the type has levels beyond those of the true width."""
        return (self.low, self.high) != limits(self.type)


def store_levels(
    bits: int,
    qmin: int,
    qmax: int,
    zero: np.ndarray | float,
    signed: bool | None = None,
) -> Stored:
    """The levels qmin … qmax with zero z in a type of 4, 8 or 16 ``bits``.

    Args:
        signed: Whether the type is; default: as the levels are.
    """
    signed = qmin < 0 if signed is None else signed
    kind = f'{"int" if signed else "uint"}{bits}'
    low, high = limits(kind)
    shift = max(qmax - high, 0) + min(qmin - low, 0)
    assert low <= qmin - shift and qmax - shift <= high, (kind, qmin, qmax)
    zero = np.asarray(zero, np.float64) - shift
    point = np.clip(np.trunc(zero), low, high)
    return Stored(kind, qmin - shift, qmax - shift, shift, point, zero - point)


def containers_of(precision: Precision, containers: str) -> tuple[int, int]:
    """Bits of the types, 4, 8 or for inputs 16, for a layer's weight and input.

    Four where ``containers`` is 'auto' and the bits suffice. An input is stored in four
    only if the weight is: ONNX Runtime 1.31 fails to open a file where a convolution
    has weights of 8 bits between inputs and outputs of 4.
    """
    weight = 4 if containers == 'auto' and precision.w_bits <= 4 else 8
    if precision.a_bits == 16:
        return weight, 16
    return weight, 4 if weight == 4 and precision.a_bits <= 4 else 8


def finer(at: Stored, a_bits: int) -> int:
    """A power of two that may multiply weights in 8 bits, if it divides their scale.

    The values stay the same, bit for bit. But ONNX Runtime rounds biases to multiples
    of the product of input and weight scale, which is coarse at few bits. Beside inputs
    of 8 bits, weights take 7, so that sums of two products stay within 16 bits, as
    processors without VNNI require.
    """
    room = (64 if a_bits == 8 else 128) // max(-at.low, at.high + 1)
    return 2 ** max(0, room.bit_length() - 1)


def needs_vnni(precision: Precision) -> bool:
    """Whether a layer's sums of two products, in int8 and uint8, may leave 16 bits.

    There processors without VNNI cut them. 2 · 128 · 127 and 2 · 64 · 255 fit.
    """
    return precision == Precision(8, 8)


def limits(kind: str) -> tuple[int, int]:
    """The lowest and the highest integer of a type such as 'uint4'."""
    bits = int(kind.lstrip('uint'))
    low = 0 if kind[0] == 'u' else -(2 ** (bits - 1))
    return low, low + 2**bits - 1


def packed(values: np.ndarray, kind: str) -> bytes:
    """Integers as ONNX's raw data: 4 bits go two to a byte, the first one low."""
    values = np.ascontiguousarray(values).astype(np.int32).ravel()
    if kind.endswith('16'):
        return values.astype('<u2').tobytes()
    data = values.astype(np.uint8)
    if kind.endswith('4'):
        data = np.append(data, np.zeros(data.size % 2, np.uint8)) & 15
        data = data[::2] | data[1::2] << 4
    return data.tobytes()
