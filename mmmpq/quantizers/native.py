"""The compiled form of fake quantization for CPUs, built once and cached.

``native.cpp`` is compiled with the machine's C++ compiler (``$CXX``, c++, g++ or
clang++) at the first call, which takes about two seconds, into the user's cache folder
(``MMMPQ_CACHE``). Without a compiler, or with ``MMMPQ_KERNELS=plain``, the plain form
in :mod:`mmmpq.quantizers.functional` does the same work.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
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
FLAGS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-fPIC', '-shared']
FLAGS += ['-fno-math-errno', '-fno-trapping-math']
GRADIENTS = ('lsq', 'clip', 'identity')  # in the order of native.cpp
KERNELS = ('auto', 'plain')

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_COMMON = [_long, _long, _int, *[_pointer] * 5]


def wanted() -> str:
    """The environment variable ``MMMPQ_KERNELS``; default 'auto'.

    Raises:
        ValueError: It is none of ``KERNELS``.
    """
    found = os.environ.get('MMMPQ_KERNELS', 'auto')
    if found not in KERNELS:
        raise ValueError(f'MMMPQ_KERNELS: found {found!r}; accepted are {KERNELS}')
    return found


@cache
def library() -> SimpleNamespace | None:
    """The compiled functions, or None where they cannot be had."""
    if wanted() == 'plain':
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print_log(
            f'the fast CPU kernels cannot be built ({error}); the plain form gives the '
            'same results, but on a CPU a training step of a quantized net takes about '
            '1.3 times as long, one of a search 2 to 3.5 times (docs/install.md)',
            logger='current',
        )
        return None
    forward, backward = loaded.mmmpq_forward, loaded.mmmpq_backward
    forward.restype = backward.restype = None
    forward.argtypes = [_int, _pointer, _pointer, *_COMMON, _int]
    backward.argtypes = [_int, *[_pointer] * 3, *_COMMON, _pointer, _int]
    backward.argtypes += [*[_pointer] * 3, _int]
    return SimpleNamespace(forward=forward, backward=backward)


def find_compiler() -> str | None:
    """Path of the machine's C++ compiler, if it has one."""
    names = [os.environ.get('CXX'), 'c++', 'g++', 'clang++']
    return next((path for n in names if n and (path := shutil.which(n))), None)


def _compiled() -> Path:
    """The shared library of this source, compiler and processor."""
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError('no C++ compiler is found')
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + ' '.join([compiler, *FLAGS, _processor()]).encode())
    folder = cache_folder() / 'kernels'
    target = folder / f'native-{key.hexdigest()[:16]}.so'
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            built = Path(made) / target.name
            command = [compiler, *FLAGS, str(SOURCE), '-o', str(built)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f'{compiler}: {done.stderr.strip()[-500:]}')
            built.replace(target)
    return target


def _processor() -> str:
    """What ``-march=native`` depends on."""
    info = Path('/proc/cpuinfo')
    flags = ''
    if info.exists():
        lines = info.read_text().splitlines()
        flags = next((n for n in lines if n.startswith(('flags', 'Features'))), '')
    return ' '.join([platform.machine(), platform.processor(), flags])


def rows(x: Tensor, scale: Tensor) -> int | None:
    """Rows of ``x`` with a step each: 1, or the output channels; None: neither."""
    if scale[0].numel() == 1:
        return 1
    outermost = all(x.stride(0) >= s for s in x.stride())
    per_channel = scale.shape[1] == x.shape[0] == scale[0].numel()
    return x.shape[0] if per_channel and outermost else None


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
) -> Tensor:
    """Σ_j p_j · Q_j(x), as the plain form gives it; ``x`` is dense."""
    out = torch.empty_like(x)
    _alive, problem = _problem(x, scale, offset, probs, levels)
    is_bfloat16 = x.dtype == torch.bfloat16
    library().forward(
        is_bfloat16, x.data_ptr(), out.data_ptr(), *problem, torch.get_num_threads()
    )
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    probs: Tensor | None,
    levels: tuple,
    scale_grad: tuple,
    gradient: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients to x, scale, offset and probs; ``grad`` lies in memory as ``x``."""
    _alive, problem = _problem(x, scale, offset, probs, levels)
    grad_x = torch.empty_like(x) if need_x else None
    grads = [
        None if t is None else torch.empty(t.shape, dtype=torch.float32)
        for t in (scale, offset, probs)
    ]
    library().backward(
        x.dtype == torch.bfloat16,
        x.data_ptr(),
        grad.data_ptr(),
        _address(grad_x),
        *problem,
        floats(scale_grad, x.device).data_ptr(),
        GRADIENTS.index(gradient),
        *map(_address, grads),
        torch.get_num_threads(),
    )
    return grad_x, *grads


def _problem(x, scale, offset, probs, levels):
    """The tensors that are to stay alive, and the arguments that all calls share."""
    count = rows(x, scale)
    alive = [
        None if t is None else t.detach().float().contiguous()
        for t in (scale, offset, probs)
    ]
    low, high = bounds(levels, x.device)
    addresses = [_address(t) for t in (alive[0], alive[1], low, high, alive[2])]
    columns = x.numel() // max(1, count)
    return alive, [count, columns, len(levels), *addresses]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=4096)
def floats(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 tensor of numbers, made and copied to the device only once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def bounds(levels: Sequence, device: torch.device) -> tuple[Tensor, Tensor]:
    """qmin and qmax of each candidate; those of float the wrong way round."""
    pairs = [(1, -1) if level is None else level for level in levels]
    low, high = (tuple(p[i] for p in pairs) for i in (0, 1))
    return floats(low, device), floats(high, device)
