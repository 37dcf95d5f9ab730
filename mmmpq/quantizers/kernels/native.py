"""The compiled form of fake quantization for CPUs, built once and cached.

``native.cpp`` is compiled at the first call, which takes two to four seconds, into the
user's cache folder (``MMMPQ_CACHE``): by the machine's C++ compiler (``$CXX``, c++, g++
or clang++) or by the one of the Python package ``ziglang``. It is built for a class of
processors, the one that torch finds itself on, so that a cache folder can be shared.
Without a compiler, or with ``MMMPQ_KERNELS=plain``, the plain form in
:mod:`mmmpq.quantizers.functional` does the same work.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmmpq.fileio import cache_folder

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = ['-O3', '-std=c++17', '-fPIC', '-shared', '-fno-exceptions', '-fno-rtti']
FLAGS += ['-fno-math-errno', '-fno-trapping-math', '-Wno-psabi']
# By what torch says of the processor; ATEN_CPU_CAPABILITY makes it say less.
PROCESSORS = {
    'AVX2': ['-mavx2', '-mfma'],
    'AVX512': ['-mfma', *(f'-mavx512{each}' for each in ('f', 'bw', 'dq', 'vl'))],
}
ZIG_CACHES = ('ZIG_GLOBAL_CACHE_DIR', 'ZIG_LOCAL_CACHE_DIR')
GRADIENTS = ('lsq', 'clip', 'identity')  # in the order of native.cpp
KERNELS = ('auto', 'plain')

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_PROBLEM = [_long, _long, _int, *[_pointer] * 6]
_THREADS = [_pointer, _int]


def setting() -> str:
    """The environment variable ``MMMPQ_KERNELS``; default 'auto'.

    Raises:
        ValueError: It is none of ``KERNELS``.
    """
    name = os.environ.get('MMMPQ_KERNELS', 'auto')
    if name not in KERNELS:
        raise ValueError(f'MMMPQ_KERNELS: found {name!r}; accepted are {KERNELS}')
    return name


@cache
def library() -> SimpleNamespace | None:
    """The compiled functions, or None where they cannot be had."""
    if setting() == 'plain':
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print_log(
            f'the fast CPU kernels cannot be built ({error}); the plain form gives the '
            'same results, but on a CPU a training step of a quantized net takes about '
            '1.4 times as long, one of a search 1.9 to 2.5 times. A compiler for them '
            'comes with: pip install ziglang',
            logger='current',
        )
        return None
    forward, backward = loaded.mmmpq_forward, loaded.mmmpq_backward
    forward.restype = None
    forward.argtypes = [_int, *[_pointer] * 2, *_PROBLEM, *_THREADS]
    backward.argtypes = [_int, *[_pointer] * 3, *_PROBLEM, _pointer, _int]
    backward.argtypes += [*[_pointer] * 3, *_THREADS]
    return SimpleNamespace(forward=forward, backward=backward, parallel=_parallel())


def _parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP that torch has loaded, if it has one.

    A pool of our own would compete for the cores with torch's, whose threads go on
    spinning for a while after each of its operations.
    """
    libraries = Path(torch.__file__).parent / 'lib'
    for path in libraries.glob('libtorch_cpu.*'):
        try:  # what it does not have itself is looked up in what it is linked to
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, _pointer).value
    return None


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler, if there is one."""
    names = [os.environ.get('CXX'), 'c++', 'g++', 'clang++']
    path = next((path for n in names if n and (path := shutil.which(n))), None)
    if path:
        return [path]
    if importlib.util.find_spec('ziglang'):
        return [sys.executable, '-m', 'ziglang', 'cc']  # its c++ builds a C++ library
    return None


def _compiled() -> Path:
    """The shared library of this source, compiler and class of processors."""
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError('no C++ compiler is found')
    processor = PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), [])
    command = [*compiler, *FLAGS, *processor]
    key = hashlib.sha256(' '.join([platform.machine(), *command]).encode())
    key.update(SOURCE.read_bytes())
    folder = cache_folder() / 'kernels'
    target = folder / f'native-{key.hexdigest()[:16]}.so'
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / target.name
            process = subprocess.run(
                [*command, str(SOURCE), '-o', str(built)],
                capture_output=True,
                text=True,
                timeout=300,
                env=os.environ | dict.fromkeys(ZIG_CACHES, scratch),
            )
            if process.returncode:
                raise RuntimeError(f'{compiler[0]}: {process.stderr.strip()[-500:]}')
            built.replace(target)
    return target


def rows(x: Tensor, scale: Tensor) -> int | None:
    """Rows of ``x`` with a step each: 1, or the output channels; None: neither."""
    count = scale.numel() // scale.shape[0]
    if count == 1:
        return 1
    per_channel = scale.shape[1] == x.shape[0] == count
    outermost = per_channel and all(x.stride(0) >= s for s in x.stride())
    return count if outermost else None


def takes(x: Tensor, scale: Tensor) -> bool:
    """Whether the compiled form serves ``x``, a dense tensor, with these steps."""
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.bfloat16)
        and scale.dtype == torch.float32
        and rows(x, scale) is not None
        and library() is not None
    )


def forward(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    probs: Tensor | None,
    levels: tuple,
    divisors: tuple | None,
) -> Tensor:
    """Σ_j p_j · Q_j(x), as the plain form gives it; ``x`` is dense."""
    out = torch.empty_like(x)
    _alive, problem = _problem(x, scale, offset, probs, levels, divisors)
    is_bfloat16 = x.dtype == torch.bfloat16
    library().forward(is_bfloat16, x.data_ptr(), out.data_ptr(), *problem, *_threads())
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    probs: Tensor | None,
    levels: tuple,
    divisors: tuple | None,
    scale_grad: tuple,
    gradient: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients to x, scale, offset and probs; ``grad`` lies in memory as ``x``."""
    _alive, problem = _problem(x, scale, offset, probs, levels, divisors)
    grad_x = torch.empty_like(x) if need_x else None
    grads = [
        None if t is None else torch.empty(t.shape, dtype=torch.float32)
        for t in (scale, offset, probs)
    ]
    failed = library().backward(
        x.dtype == torch.bfloat16,
        x.data_ptr(),
        grad.data_ptr(),
        _address(grad_x),
        *problem,
        floats(scale_grad, x.device).data_ptr(),
        GRADIENTS.index(gradient),
        *map(_address, grads),
        *_threads(),
    )
    if failed:
        raise MemoryError('no memory for the sums of a fake quantization')
    return grad_x, *grads


def _problem(x, scale, offset, probs, levels, divisors):
    """The tensors that are to stay alive, and the arguments that all calls share."""
    count = rows(x, scale)
    alive = [None if t is None else plain(t) for t in (scale, offset, probs)]
    low, high = bounds(levels, x.device)
    divisor = None if divisors is None else floats(divisors, x.device)
    tensors = (alive[0], divisor, alive[1], low, high, alive[2])
    columns = x.numel() // max(1, count)
    return alive, [count, columns, len(levels), *map(_address, tensors)]


def plain(tensor: Tensor) -> Tensor:
    """In float32 and without gaps, as most small tensors are."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.float().contiguous()


def _threads() -> tuple[int | None, int]:
    return library().parallel, torch.get_num_threads()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=4096)
def floats(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor of numbers, made and copied to the device only once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def pairs(levels: Sequence) -> list[tuple[int, int]]:
    """(qmin, qmax) of each candidate; those of float the wrong way round."""
    return [(1, -1) if level is None else level for level in levels]


@lru_cache(maxsize=4096)
def bounds(levels: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    """qmin and qmax of each candidate."""
    low, high = zip(*pairs(levels), strict=True)
    return floats(low, device), floats(high, device)
