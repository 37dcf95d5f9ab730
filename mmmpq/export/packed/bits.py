"""Codes of 1 to 8 bits, one behind the other without a gap, or compressed."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORD = np.dtype('<u8')  # eight codes of up to 8 bits, the first in the lowest bits


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take: ⌈count · bits / 8⌉."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs unsigned codes into a stream of bits.

    Code i, in row-major order, fills the bits i · b to (i + 1) · b - 1 of the stream,
    its lowest bit first; bit k of the stream is bit k mod 8 (0 the lowest) of byte
    ⌊k / 8⌋. The bits behind the last code are 0.

    Args:
        codes: Integers of any shape, 0 to 2^bits - 1, on the CPU.
        bits: Width b, 1 to 8.

    Returns:
        uint8 (packed_bytes(codes.numel(), bits),).

    Raises:
        ValueError: A width or a code out of range.

    Examples:
        >>> pack(torch.tensor([1, 2, 3, 0, 1]), 2)
        tensor([57,  1], dtype=torch.uint8)
    """
    _check_bits(bits)
    values = codes.reshape(-1).numpy()
    if values.size and (values.min() < 0 or values.max() >= 2**bits):
        raise ValueError(
            f'codes: found {values.min()} to {values.max()}; accepted at {bits} bits '
            f'are 0 to {2**bits - 1}'
        )
    groups = np.zeros((-(-values.size // 8), 8), np.uint8)
    groups.reshape(-1)[: values.size] = values
    words = np.zeros(len(groups), _WORD)
    for j in range(8):
        words |= groups[:, j].astype(_WORD) << _WORD.type(j * bits)
    stream = words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
    return torch.from_numpy(stream[: packed_bytes(values.size, bits)].copy())


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The codes that :func:`pack` has packed.

    Args:
        packed: uint8, one-dimensional.
        bits: Width, 1 to 8.
        shape: Of the codes.

    Returns:
        uint8 of ``shape``.

    Raises:
        ValueError: A width out of range, or ``packed`` is not as long as that shape.
    """
    _check_bits(bits)
    count = math.prod(shape)
    wanted = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (wanted,):
        raise ValueError(
            f'packed: found {tuple(packed.shape)} of {packed.dtype}; {count} codes of '
            f'{bits} bits are ({wanted},) of torch.uint8'
        )
    groups = -(-count // 8)
    stream = np.zeros(groups * bits, np.uint8)
    stream[:wanted] = packed.numpy()
    words = np.zeros((groups, 8), np.uint8)
    words[:, :bits] = stream.reshape(groups, bits)
    words = words.view(_WORD).reshape(-1)
    codes = np.empty((groups, 8), np.uint8)
    for j in range(8):
        codes[:, j] = (words >> _WORD.type(j * bits)) & _WORD.type(2**bits - 1)
    return torch.from_numpy(codes.reshape(-1)[:count]).reshape(tuple(shape))


def compress(codes: Tensor) -> Tensor:
    """A zlib stream of the codes, a byte each, by Huffman's code alone: weights have
    no repetitions, but some levels are more frequent than others.

    Args:
        codes: Integers of any shape, 0 to 255, on the CPU.

    Returns:
        uint8, one-dimensional.
    """
    stream = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    data = stream.compress(codes.reshape(-1).to(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(data + stream.flush()), dtype=torch.uint8)


def expand(compressed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The codes that :func:`compress` has compressed; takes no more memory than they.

    Args:
        compressed: uint8, one-dimensional.
        bits: Width, 1 to 8.
        shape: Of the codes.

    Returns:
        uint8 of ``shape``.

    Raises:
        ValueError: It is damaged, or not as many codes of that width.
    """
    _check_bits(bits)
    count = math.prod(shape)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(compressed.numpy().tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f'compressed codes: {error}') from error
    whole = stream.eof and not stream.unused_data and len(data) == count
    codes = np.frombuffer(data, np.uint8)
    if not whole or codes.max(initial=0) >= 2**bits:
        raise ValueError(f'compressed codes: found other than {count} of {bits} bits')
    return torch.from_numpy(codes.copy()).reshape(tuple(shape))


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise ValueError(f'bits: found {bits!r}; accepted are 1 to 8')
