"""What torch's profiler counts: operations, launches, and waits for the device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(device: str) -> Iterator[profile]:
    """A profile of what runs within it, to the end on the device as well."""
    activities = [ProfilerActivity.CPU]
    if device == 'cuda':
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as found:
        yield found
        if device == 'cuda':
            torch.cuda.synchronize()  # one of the waits counted


def counts(found: profile, outside: str = '') -> dict[str, int]:
    """Operations of torch, launches, waits for the device, what the host reads of it.

    'scalar_reads' are ``.item()``, ``float()``, ``bool()``; counted on a CPU, too.

    Args:
        found: A profile.
        outside: Leave out what starts within a ``record_function`` of this name.
    """
    events = found.events()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name == outside and event.device_type == DeviceType.CPU
    ]
    calls = Counter(
        event.name
        for event in events
        if not any(start <= event.time_range.start <= end for start, end in spans)
    )

    def total(*parts: str) -> int:
        return sum(n for name, n in calls.items() if any(p in name for p in parts))

    return dict(
        ops=total('aten::'),
        launches=total('LaunchKernel'),
        # but for the one that ends the profile
        waits=total('StreamSynchronize', 'DeviceSynchronize', 'EventSynchronize')
        - ('cudaDeviceSynchronize' in calls),
        copies_to_host=total('Memcpy DtoH'),
        scalar_reads=calls['aten::_local_scalar_dense'],
    )


def top(found: profile, most: int = 20) -> dict[str, list]:
    """The operations that take longest, on the host and on the device.

    Returns:
        Two lists of (name, calls, milliseconds of its own).
    """
    averages = found.key_averages()

    def longest(attribute: str) -> list:
        rows = [(e.key, e.count, getattr(e, attribute) / 1e3) for e in averages]
        rows = sorted(rows, key=lambda row: -row[2])[:most]
        return [(name[:80], n, round(ms, 3)) for name, n, ms in rows if ms]

    return dict(
        top_host=longest('self_cpu_time_total'),
        top_device=longest('self_device_time_total'),
    )
