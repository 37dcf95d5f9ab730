"""The kernels of the device against float64: every family, dtype and layout.

The reference is the plain form, which is what float64 gets on every device. Where an
input lies a rounding error beside a threshold, float32 takes the other level: such
elements are counted, and everything else has to agree.
"""

import copy
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain

import torch
from gpu_records import Records, Settings, last_line
from kernels import FAMILIES, WIDTHS

from mmmpq.quantizers import functional, native
from mmmpq.quantizers.functional import mix_fake_quantize

DTYPES = ('float32', 'bfloat16', 'float16')
SHAPES = {
    'odd': (3, 5, 17, 19),
    'one row': (1009,),
    'even': (4, 64, 32, 32),
    'tokens': (2, 197, 96),
    'channels last': (2, 16, 33, 31),
    'per channel': (33, 7, 3, 3),
    'large': (5, 64, 113, 111),
}
WEIGHTS = ((64, 3, 7, 7), (64, 64, 1, 1), (130, 64, 3, 3), (512, 512, 3, 3), (10, 33))
TINY_WEIGHTS = ((8, 3, 7, 7), (8, 8, 1, 1), (9, 8, 3, 3), (4, 300, 3, 3), (10, 33)) * 2
# Of 12 candidates; None is float.
LEVELS = [(-7, 7), (0, 15), None, (-1, 1), (0, 3), (-127, 127)]
LEVELS += [(-8, 7), (0, 255), (-2, 1), (0, 7), (-3, 3), (0, 1)]
# Shares of elements that may take the other level, and relative errors.
OTHER_LEVEL, SUMS = 3e-3, 3e-3


@dataclass(frozen=True)
class Case:
    """What is compared: ``family`` is a quantizer's, or 'raw', the function alone."""

    family: str
    dtype: str
    layout: str
    candidates: int
    gradient: str = ''
    offset: bool = False

    def tensor(self, device: str) -> torch.Tensor:
        x = torch.randn(SHAPES[self.layout], device=device) + 0.2
        if self.layout == 'channels last':
            x = x.to(memory_format=torch.channels_last)
        return x.to(getattr(torch, self.dtype))


def cases(tiny: bool) -> Iterator[Case]:
    """All families in all precisions that reach them; the function in all its forms.

    Weights stay float32 under autocast, so their families meet nothing else.
    """
    layouts = [*SHAPES][: 2 if tiny else None]
    for family, (_, target) in FAMILIES.items():
        for dtype in DTYPES[: 1 if target == 'weight' else None]:
            for i, m in enumerate((3,) if tiny else (1, 3, 7)):
                layout = 'odd' if tiny else ('large', 'channels last', 'tokens')[i]
                yield Case(family, dtype, layout, m)
    if not tiny:  # what :mod:`gpu_step` needs, compiled here side by side
        for m in (1, 2, 3, 4, 5):
            yield Case('linear, weights', 'float32', 'even', m)
            for dtype in DTYPES[:2]:
                yield Case('linear', dtype, 'even', m)
    number = 0
    for m in (2, 12) if tiny else range(1, 13):
        for gradient in native.GRADIENTS:
            number += 1
            layout = layouts[number % len(layouts)]
            dtype = DTYPES[number // 2 % 3]
            yield Case('raw', dtype, layout, m, gradient, number % 2 == 0)


def problem(case: Case, device: str) -> tuple[Callable, Callable, Sequence]:
    """The function of (x, *leaves), its form in float64, and the leaves."""
    m = case.candidates
    probs = torch.softmax(torch.randn(m, device=device), 0)
    if case.family != 'raw':
        kind, target = FAMILIES[case.family]
        bits = WIDTHS[:m]
        fine = kind(sorted(bits), target).to(device)
        sample = case.tensor(device).float()
        fine.calibrate(sample if target == 'weight' else sample.relu())
        with torch.no_grad():  # ranges as fitted may be thresholds of many values
            for param in fine.parameters():
                param += (param.abs() + 0.3) * 0.1 * torch.rand_like(param)
        reference = copy.deepcopy(fine).double()

        def mixed(quantizer: torch.nn.Module) -> Callable:
            def call(x: torch.Tensor, p: torch.Tensor, *params) -> torch.Tensor:
                x = x if target == 'weight' else x.relu()
                named = dict(zip(names, params, strict=True))
                with torch.nn.utils.stateless._reparametrize_module(quantizer, named):
                    return quantizer.mix(x, bits, p)

            return call

        names = [n for n, _ in fine.named_parameters()]
        return mixed(fine), mixed(reference), [probs, *fine.parameters()]
    channels = SHAPES[case.layout][0] if case.layout == 'per channel' else None
    shape = (m,) if channels is None else (m, channels, 1, 1, 1)
    leaves = [torch.rand(shape, device=device) * 0.3 + 0.05, probs]
    if case.offset:
        leaves.append(torch.rand(shape, device=device) - 0.5)

    def call(x: torch.Tensor, scale, p, offset=None) -> torch.Tensor:
        factors = [0.5 + j for j in range(m)]
        levels = LEVELS[:m]
        return mix_fake_quantize(x, scale, p, levels, factors, offset, case.gradient)

    return call, call, leaves


def evaluate(call: Callable, x, leaves: Sequence, grad, dtype=None) -> tuple:
    """Output and the gradients of x and of the leaves."""
    x, *leaves, grad = (
        t.detach().to(dtype or t.dtype, copy=True) for t in (x, *leaves, grad)
    )
    leaves = [t.requires_grad_() for t in (x, *leaves)]
    out = call(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad, allow_unused=True)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Share of elements at another level; relative error of the rest of them."""
    coarse = torch.finfo(found.dtype).eps
    found, top = found.double(), wanted.abs().max().clamp_min(1e-30)
    error = (found - wanted).abs()
    other = ~(error <= coarse * wanted.abs() + 1e-5 * top)
    left = error[~other]
    return float(other.double().mean()), float((left.max() if len(left) else 0) / top)


def check(case: Case, device: str) -> dict:
    """A record of one case."""
    torch.manual_seed(hash_of(case))
    record = dict(vars(case), kernels='plain')
    call, reference, leaves = problem(case, device)
    x = case.tensor(device)
    grad = (torch.randn_like(x.float()) + 0.3).to(x.dtype)
    with noting_triton(record):
        out, grad_x, *small = evaluate(call, x, leaves, grad)
    again = evaluate(call, x, leaves, grad)
    record['repeats'] = all(
        torch.equal(a, b)
        for a, b in zip((out, grad_x, *small), again, strict=True)
        if a is not None
    )
    wanted, wanted_x, *wanted_small = evaluate(
        reference, x, leaves, grad, torch.float64
    )
    shares = {}
    shares['out'], record['out_error'] = apart(out, wanted)
    shares['grad'], record['grad_error'] = apart(grad_x, wanted_x)
    sums = [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(small, wanted_small, strict=True)
        if a is not None
    ]
    record.update(
        other_level=max(shares.values()),
        sums_error=max(sums),
        strides=out.stride() == x.stride() == grad_x.stride(),
    )
    # A wrong element of few is one over the size, so one is always allowed.
    few = max(OTHER_LEVEL, 1.5 / x.numel())
    sums_bound = SUMS + 3 / x.numel()
    record['ok'] = record['strides'] and record['other_level'] <= few
    record['ok'] &= record['sums_error'] <= sums_bound and record['repeats']
    return record


def check_together(dtype: str, device: str, shapes: Sequence = WEIGHTS * 4) -> dict:
    """A record of the weights of a net in one launch, some of them mixed, some with a
    range for every channel, one without a gradient."""
    from mmmpq.quantizers.kernels import triton_batch

    torch.manual_seed(0)
    mixes, leaves = [], [[], [], []]
    for number, shape in enumerate(shapes):
        m = (1, 3, 5, 12)[number % 4]
        channels = shape[0] if number % 3 == 2 else 1
        x = torch.randn(shape, device=device) * 0.3
        if number % 5 == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        ranges = torch.rand(m, channels, device=device) + 0.5
        for leaf, to in zip((x, ranges), leaves, strict=False):
            to.append(leaf.requires_grad_(number != 7))
        if m > 1:
            probs = torch.softmax(torch.randn(m, device=device), 0)
            leaves[2].append(probs.requires_grad_(number != 7))
        levels = tuple(LEVELS[:m])
        divisors = tuple(float(level[1]) if level else 1.0 for level in levels)
        factors = tuple(0.5 + j for j in range(m))
        mix = x.detach(), ranges.detach(), levels, divisors, factors, m > 1
        mixes.append(triton_batch.Mix(*mix))
    plan = triton_batch.Plan(mixes)
    target = getattr(torch, dtype)
    leaves = list(chain(*leaves))
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    grads = [(torch.randn_like(mix.x) + 0.3).to(target) for mix in mixes]

    def results(outs: Sequence) -> list[torch.Tensor]:
        places = [i for i, out in enumerate(outs) if out.requires_grad]
        given = [grads[i].to(outs[i].dtype) for i in places]
        return [*outs, *torch.autograd.grad([outs[i] for i in places], trained, given)]

    def together() -> list[torch.Tensor]:
        return results(triton_batch.FakeQuantizeAll.apply(plan, target, *leaves))

    found, again = together(), together()
    probs = iter(leaves[2 * len(mixes) :])
    wanted = []
    for mix, x, ranges in zip(mixes, leaves, leaves[len(mixes) :], strict=False):
        p = next(probs).double() if mix.mixed else None
        how = mix.levels, mix.scale_grad, None, 'lsq', mix.divisors
        wanted.append(mix_fake_quantize(x.double(), ranges.double(), p, *how))
    pairs = list(zip(found, results(wanted), strict=True))
    large = len(mixes) + sum(x.requires_grad for x in leaves[: len(mixes)])
    values = [apart(a.detach(), b.detach()) for a, b in pairs[:large]]
    sums = [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in pairs[large:]
    ]
    record = dict(
        family='weights together',
        kernels='triton',
        dtype=dtype,
        candidates=12,
        other_level=max(share for share, _ in values),
        out_error=max(error for _, error in values),
        sums_error=max(sums),
        repeats=all(map(torch.equal, found, again)),
    )
    record['ok'] = record['repeats'] and record['other_level'] <= OTHER_LEVEL
    record['ok'] &= record['sums_error'] <= SUMS
    return record


def hash_of(case: Case) -> int:
    """The same in every process."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(repr(case)))


class noting_triton:
    """Within it a record learns whether Triton's kernels were called."""

    def __init__(self, record: dict) -> None:
        self.record = record

    def __enter__(self) -> None:
        self.kernels = functional._triton()
        if self.kernels is not None:
            self.forward = self.kernels.forward
            self.kernels.forward = self._noted

    def _noted(self, *args, **kwargs) -> torch.Tensor:
        self.record['kernels'] = 'triton'
        return self.forward(*args, **kwargs)

    def __exit__(self, *_) -> None:
        if self.kernels is not None:
            self.kernels.forward = self.forward


def check_beyond_int32(device: str) -> dict:
    """More than 2^31 values: the last of them, whose addresses need 64 bits."""
    count, last = 2**31 + 4099, 100_000
    x = torch.empty(count, dtype=torch.bfloat16, device=device).normal_()
    scale = torch.tensor([0.2, 0.1], device=device)
    probs = torch.tensor([0.3, 0.7], device=device)
    levels, factors = [(-7, 7), (-1, 1)], [1.0, 1.0]
    x.requires_grad_()
    out = mix_fake_quantize(x, scale, probs, levels, factors)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    end = x.detach()[-last:].double().requires_grad_()
    wanted = mix_fake_quantize(end, scale.double(), probs.double(), levels, factors)
    (wanted_grad,) = torch.autograd.grad(wanted, end, torch.ones_like(wanted))
    pairs = ((out.detach()[-last:], wanted.detach()), (grad[-last:], wanted_grad))
    found = [apart(*pair) for pair in pairs]
    share = max(s for s, _ in found)
    return dict(
        family='raw',
        dtype='bfloat16',
        layout='2^31 values',
        candidates=2,
        other_level=share,
        out_error=found[0][1],
        grad_error=found[1][1],
        ok=share <= OTHER_LEVEL,
    )


def interpret() -> None:
    """Has Triton's interpreter take CPU tensors, for a dry run."""
    kernels = functional._triton()

    def pick(x: torch.Tensor, scale: torch.Tensor):
        served = x.dtype != torch.float64 and native.rows(x, scale) is not None
        return kernels if served else None

    functional._kernels = pick


def run(records: Records, settings: Settings) -> None:
    """The stage: on a GPU in several processes, since kernels take long to compile."""
    if functional._triton() is None:
        records.add(skipped='Triton is not installed')
        return
    todo = list(cases(settings.tiny))
    random.Random(0).shuffle(todo)  # a part of them tells of all
    if settings.device == 'cpu':
        interpret()
        for case in todo:
            records.add(**check(case, 'cpu'))
        records.add(**check_together('float32', 'cpu', TINY_WEIGHTS))
        return
    spawning = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(settings.jobs, mp_context=spawning) as pool:
        started = {
            pool.submit(check_together, dtype, 'cuda'): dict(family='weights together')
            for dtype in DTYPES
        }
        started |= {pool.submit(check, case, 'cuda'): vars(case) for case in todo}
        for future in as_completed(started):
            _note(records, future, started[future])
        future = pool.submit(check_beyond_int32, 'cuda')
        _note(records, future, dict(family='raw', layout='2^31 values'))


def _note(records: Records, future: Future, about: dict) -> None:
    try:
        records.add(**future.result())
    except Exception as error:
        records.add(**about, ok=False, error=last_line(error))
