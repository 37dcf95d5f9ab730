"""The frame of a safetensors file: its header, and whether its tensors are all there.

The library itself says of a damaged file only that it is one.
"""

import json
import math

SIZES = {
    **dict.fromkeys(('BOOL', 'U8', 'I8'), 1),
    **dict.fromkeys(('I16', 'U16', 'F16', 'BF16'), 2),
    **dict.fromkeys(('I32', 'U32', 'F32'), 4),
    **dict.fromkeys(('I64', 'U64', 'F64'), 8),
}


def parse(data: bytes, path: str) -> tuple[dict[str, str], dict[str, dict]]:
    """Metadata, and ``dtype``, ``shape`` and ``data_offsets`` of every tensor.

    The offsets are made to count from the file's first byte.

    Raises:
        ValueError: The header is damaged or not whole.
    """
    length = int.from_bytes(data[:8], 'little')
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(
            f'{path} is damaged or cut short: of {len(data)} bytes, the header alone '
            f'takes {length + 8}'
        )
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop('__metadata__', {})
        places = {
            name: dict(
                dtype=str(place['dtype']),
                shape=[int(side) for side in place['shape']],
                data_offsets=[8 + length + int(o) for o in place['data_offsets']],
            )
            for name, place in header.items()
        }
        if any(len(place['data_offsets']) != 2 for place in places.values()):
            raise TypeError('offsets that are no pair')
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError('metadata that is no text')
    except (
        *(ValueError, TypeError, KeyError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise ValueError(
            f'{path} is damaged: its header is not that of a safetensors file ({error})'
        ) from error
    return metadata, places


def check_tensors(data: bytes, places: dict[str, dict], path: str) -> None:
    """Raises ValueError naming a tensor that is cut off or overlaps with another."""
    at = 8 + int.from_bytes(data[:8], 'little')  # the end of the header
    for name, place in sorted(places.items(), key=lambda p: p[1]['data_offsets']):
        start, end = place['data_offsets']
        size = SIZES.get(place['dtype'], math.nan) * math.prod(place['shape'])
        if end > len(data):
            raise ValueError(
                f'{path} is cut short: the tensor {name!r} ends at byte {end}, the '
                f'file at {len(data)}'
            )
        if start != at or end - start != size:
            raise ValueError(
                f'{path} is damaged: bytes {start} to {end} are not the tensor '
                f'{name!r} of {place["dtype"]} {place["shape"]}'
            )
        at = end
    if at != len(data):
        raise ValueError(
            f'{path} is damaged: it goes on for {len(data) - at} bytes behind its last '
            'tensor'
        )
