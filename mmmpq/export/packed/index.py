"""The index of a packed file, compared with its tensors before anything is unpacked."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmmpq.export.packed.bits import expand, packed_bytes, unpack
from mmmpq.policy import Policy

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PARTS = ('weights', 'remainder', 'aliases', 'folded', 'digests')
HUFFMAN = 'huffman'
SHARED = 16  # tensors of a module with several names, on an average at most


def name_of(dtype: torch.dtype) -> str:
    """'float32' of torch.float32."""
    return str(dtype).removeprefix('torch.')


DTYPES = {name_of(dtype): dtype for dtype in FLOATS}


def check_index(index: Any, tensors: Mapping[str, Tensor], policy: Policy) -> None:
    """Raises ValueError that names the first entry that is not as it was written.

    Of an index that passes, a state dict takes memory in proportion to the tensors.

    Args:
        index: Of the file, as JSON gave it.
        tensors: The file's, without the index.
        policy: The file's.
    """
    _require(isinstance(index, dict), f'found {type(index).__name__} for a dict')
    for part in PARTS:
        found = index.get(part)
        _require(isinstance(found, dict), f'{part}: found {found!r:.60} for a dict')
    shapes: dict[str, tuple[int, ...]] = {}
    used = set()
    for kind, entries in index['remainder'].items():
        key = f'remainder.{kind}'
        used.add(key)
        flat = tensors.get(key)
        _require(
            flat is not None and flat.dim() == 1 and name_of(flat.dtype) == kind,
            f'{key}: the file has no such tensor, in one dimension',
        )
        _require(isinstance(entries, dict), f'{key}: found {entries!r:.60} for a dict')
        sizes = 0
        for name, shape in entries.items():
            _require(name not in shapes, f'{name}: it is there twice')
            shapes[name] = _shape(name, shape)
            sizes += math.prod(shapes[name])
        _require(sizes == len(flat), f'{key}: {sizes} values, the file has {len(flat)}')
    for name, entry in index['weights'].items():
        _check_weight(name, entry, tensors, shapes, policy)
        if entry['bits']:
            used.add(f'{name}.weight')
    narrow = {
        n for n, p in policy.layers.items()
        if p.w_bits < 32 and f'{n}.weight' not in index['aliases']
    }  # fmt: skip
    for name in narrow ^ set(index['weights']):
        raise ValueError(f'weights: {name} is in one of index and policy alone')
    for name in set(tensors) ^ used:
        raise ValueError(f'the tensor {name!r} is in one of index and file alone')
    for part in ('aliases', 'folded', 'digests'):
        for pair in index[part].items():
            _require(isinstance(pair[1], str), f'{part}: found {pair!r:.60}')
    held = Counter(name.rpartition('.')[0] for name in shapes)
    copies = sum(held[name] for name in index['aliases'].values())
    _require(
        copies <= SHARED * (len(index['aliases']) + len(shapes)),
        f'aliases: they stand for {copies} tensors',
    )


def codes_of(tensor: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """The codes c = q - qmin of a weight of a checked index, uint8.

    Raises:
        ValueError: They are compressed, and not what the entry says.
    """
    read = expand if entry.get('coding') else unpack
    return read(tensor, entry['bits'], entry['shape'])


def stored_elements(index: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """How many numbers of a checked index the file really holds."""
    weights = index['weights'].values()
    return sum(math.prod(entry['shape']) for entry in weights if entry['bits']) + sum(
        len(tensors[f'remainder.{kind}']) for kind in index['remainder']
    )


def _check_weight(
    name: str,
    entry: Any,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    policy: Policy,
) -> None:
    bits = entry.get('bits') if isinstance(entry, dict) else None
    _require(
        name in policy.layers and _is_int(bits) and bits == policy.layers[name].w_bits,
        f'{name}: found {entry!r:.60}; the policy has {policy.layers.get(name)}',
    )
    dtype, shape = entry.get('dtype'), _shape(name, entry.get('shape'))
    _require(str(dtype) in DTYPES, f'{name}: found the dtype {dtype!r:.60}')
    out_dim = entry.get('out_dim', 0)
    _require(
        _is_int(out_dim) and 0 <= out_dim < max(len(shape), 1),
        f'{name}: found the out_dim {out_dim!r:.60}',
    )
    _require(f'{name}.weight' not in shapes, f'{name}.weight: it is there twice')
    if not bits:
        return
    packed = tensors.get(f'{name}.weight')
    count, coding = math.prod(shape), entry.get('coding')
    wanted = packed_bytes(count, bits)
    # A Huffman code has a bit at least; what is not smaller is not compressed.
    sizes = {None: range(wanted, wanted + 1), HUFFMAN: range(-(-count // 8), wanted)}
    _require(coding in sizes, f'{name}: found the coding {coding!r:.60}')
    _require(
        packed is not None
        and packed.dtype == torch.uint8
        and packed.dim() == 1
        and len(packed) in sizes[coding],
        f'{name}: the file has not the {wanted} bytes of {list(shape)} at {bits} bits',
    )
    levels = entry.get('levels')
    _require(
        isinstance(levels, (list, tuple))
        and len(levels) == 2
        and all(map(_is_int, levels))
        and -256 <= levels[0] < levels[1] <= 256
        and levels[1] - levels[0] < 2**bits,
        f'{name}: found the levels {levels!r:.60}',
    )
    key = f'{name}.w_quantizer.scale'
    scale = shapes.get(key)
    _require(
        scale in ((), (shape[:1] + (1,) * (len(shape) - 1))),
        f'{key}: found the shape {scale}',
    )
    zero = shapes.get(f'{name}.w_quantizer.zero', scale)
    _require(zero == scale, f'{name}.w_quantizer.zero: found the shape {zero}')


def _shape(name: str, value: Any) -> tuple[int, ...]:
    _require(
        isinstance(value, list) and all(_is_int(side) and side >= 0 for side in value),
        f'{name}: found the shape {value!r:.60}',
    )
    return tuple(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
