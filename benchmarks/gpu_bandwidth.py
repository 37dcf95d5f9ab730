"""Kernels against copy bandwidth where tensors are large, against the clock where not.

A weight is so small that a kernel of it takes less than its launch: what counts is
microseconds of a call, one after the other as in a step, and launches.
"""

import time
from statistics import median

import kernels
import torch
from gpu_profile import counts, profiled
from gpu_records import Records, Settings

# ResNet-50's: the smallest, two of 3 x 3 and the largest.
WEIGHTS = ((64, 64, 1, 1), (128, 128, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1))
LARGE = [f for f, (_, target) in kernels.FAMILIES.items() if target == 'activation']


def small(shape: tuple, candidates: int, settings: Settings) -> dict:
    """Microseconds and launches of one call on a weight, host included."""
    mix = kernels.Mix(
        'linear, weights', candidates, shape, torch.float32, settings.device
    )
    times = dict(forward=[], backward=[])

    def calls(count: int) -> None:
        for name, step in (('forward', mix.forward), ('backward', both)):
            start = now(settings.device)
            for _ in range(count):
                step()
            times[name].append((now(settings.device) - start) / count)

    def both() -> None:
        mix.forward()
        mix.backward()

    for _ in range(3 if settings.tiny else 10):
        calls(2 if settings.tiny else 50)
    forward, whole = (median(t[1:]) * 1e6 for t in times.values())
    found = {}
    for name, step in (('forward', mix.forward), ('backward', mix.backward)):
        with profiled(settings.device) as profile:
            step()
        found[f'{name}_launches'] = counts(profile)['launches']
        found[f'{name}_ops'] = counts(profile)['ops']
    return dict(
        family='linear, weights',
        dtype='float32',
        shape='x'.join(map(str, shape)),
        candidates=candidates,
        forward_us=round(forward, 1),
        backward_us=round(whole - forward, 1),
        **found,
    )


def now(device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def run(records: Records, settings: Settings) -> None:
    """The stage."""
    powers, repeats = ((12,), 1) if settings.tiny else ((24, 26), 15)
    todo = [
        (family, m, 1 << power, dtype)
        for dtype in ('bfloat16', 'float32')
        for power in powers
        for family in (LARGE if power == max(powers) else LARGE[:1])
        for m in ((4,) if settings.tiny else (1, 4, 7))
    ]
    weights = WEIGHTS[:1] if settings.tiny else WEIGHTS
    for shape in weights:
        for m in (1, 4):
            records.add(**small(shape, m, settings))
    for family, m, elements, dtype in todo:
        found = kernels.measure(family, m, elements, dtype, settings.device, repeats)
        records.add(**found)
