"""The fused fake quantizers against the memory-bandwidth floor of the same run.

The floor is what a copy of the tensor takes: forward one read and one write, backward
two reads (input and gradient) and one write, so one and a half copies. ``floor`` is the
share of it that a kernel reaches; the copies take turns with the kernels, and medians
are compared. Sums for the gradients of ranges and probabilities are included. Freed
memory is kept for the next tensor, as GPUs' allocators do: on a CPU its first touch
costs several times what the copy does, for every operation alike.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmmpq.quantizers import (
    BatchQuantizer,
    DoReFaQuantizer,
    GaussianQuantizer,
    LinearQuantizer,
    LSQQuantizer,
    PACTQuantizer,
)

WIDTHS = (4, 2, 3, 8, 5, 6, 7)
FAMILIES = {
    'linear': (LinearQuantizer, 'activation'),
    'LSQ': (LSQQuantizer, 'activation'),
    'half-wave Gaussian': (GaussianQuantizer, 'activation'),
    'Gaussian': (GaussianQuantizer, 'weight'),
    'PACT': (PACTQuantizer, 'activation'),
    'BatchQuant': (BatchQuantizer, 'activation'),
    'DoReFa': (DoReFaQuantizer, 'weight'),
    'linear, weights': (LinearQuantizer, 'weight'),
}


def keep_freed_memory() -> None:
    """Has glibc take all memory from the heap, and never give it back."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def seconds(function: Callable, device: str) -> float:
    """Time of a call; on a GPU its own, with nothing in its cache.

    The GPU sleeps while the host queues the call, so that no wait for the host counts.
    """
    if device == 'cuda':
        _flush().zero_()
        torch.cuda._sleep(2_000_000)  # about a millisecond
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@cache
def _flush() -> torch.Tensor:
    """Larger than any cache."""
    return torch.empty(1 << 28, dtype=torch.int8, device='cuda')


class Mix:
    """A mix of several candidates of one family, forward and backward.

    Args:
        family: A name in ``FAMILIES``.
        candidates: How many.
        shape: Of the tensor.
        dtype: Of the tensor.
        device: 'cpu' or 'cuda'.
    """

    def __init__(
        self,
        family: str,
        candidates: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: str,
    ) -> None:
        kind, target = FAMILIES[family]
        x = torch.randn(*shape, device=device)
        self.x = (x if target == 'weight' else x.relu()).to(dtype).requires_grad_()
        self.grad = torch.randn_like(self.x)
        self.bits = tuple(sorted(WIDTHS[:candidates]))  # as a layer asks for them
        self.quantizer = kind(self.bits, target).to(device)
        self.quantizer.calibrate(self.x.detach().flatten()[: 1 << 20].view(1, 1, -1))
        self.probs = torch.full((candidates,), 1 / candidates, device=device)
        self.leaves = [self.x, self.probs.requires_grad_()]
        self.leaves += self.quantizer.parameters()
        self.out: torch.Tensor | None = None

    def forward(self) -> None:
        self.out = self.quantizer.mix(self.x, self.bits, self.probs)

    def backward(self) -> None:
        torch.autograd.grad(self.out, self.leaves, self.grad)


def measure(
    family: str, candidates: int, elements: int, dtype: str, device: str, repeats: int
) -> dict:
    """One record: a mix of so many candidates of one family."""
    shape = (1, 64, elements // 64)
    mix = Mix(family, candidates, shape, getattr(torch, dtype), device)
    x = mix.x.detach()
    copy = torch.empty_like(x)
    steps = (lambda: copy.copy_(x), mix.forward, mix.backward)
    rounds = [[seconds(step, device) for step in steps] for _ in range(repeats + 2)]
    floor, forwards, backwards = (median(r) for r in zip(*rounds[2:], strict=True))
    return dict(
        family=family,
        dtype=dtype,
        candidates=candidates,
        elements=elements,
        copy_gb_s=round(2 * x.element_size() * elements / floor / 1e9, 1),
        forward_ms=round(forwards * 1e3, 3),
        backward_ms=round(backwards * 1e3, 3),
        forward_floor=round(floor / forwards, 3),
        backward_floor=round(1.5 * floor / backwards, 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--elements', type=int, default=1 << 24)
    parser.add_argument(
        '--candidates', nargs='+', type=int, choices=range(1, 8), default=[1, 3, 4, 7]
    )
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--json', metavar='FILE', help='write the records there')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    on_gpu = args.device == 'cuda'
    name = torch.cuda.get_device_name() if on_gpu else f'{os.cpu_count()} cores, CPU'
    todo = [(f, m) for f in args.families for m in args.candidates]
    common = (args.elements, args.dtype, args.device, args.repeats)
    records = [
        dict(device=name) | measure(f, m, *common) for f, m in track(todo, 'kernels')
    ]
    table = Table(title=f'{name}, {args.dtype}: share of the bandwidth floor')
    for column in ('family', 'candidates', 'copy GB/s', 'forward', 'backward'):
        table.add_column(column)
    for r in records:
        table.add_row(
            r['family'],
            str(r['candidates']),
            f'{r["copy_gb_s"]:.1f}',
            f'{r["forward_floor"]:.0%} ({r["forward_ms"]:.2f} ms)',
            f'{r["backward_floor"]:.0%} ({r["backward_ms"]:.2f} ms)',
        )
    Console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=2) + '\n')


if __name__ == '__main__':
    main()
