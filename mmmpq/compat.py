"""What the package does about the versions of its dependencies.

torch >= 2.6 loads checkpoints with ``weights_only=True``, and MMEngine's checkpoints
hold objects that this mode refuses. Switching the protection off would let a stranger's
checkpoint run code, so exactly the harmless classes found in them are allowed instead.
"""

import pickle
import re
import warnings
from importlib import metadata

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# The newest releases that the tests have run with (requirements.txt pins them).
TESTED = {
    'torch': '2.11',
    'mmengine': '0.10',
    'mmcv': '2.1',
    'mmdet': '3.3',
    'mmpretrain': '1.2',
    'numpy': '2.4',
}

STATISTICS = ('min', 'max', 'current', 'mean')


def safe_getattr(obj, name: str):
    """What a checkpoint gets for ``getattr``: the statistics of HistoryBuffer.

    Pickle writes the functions ``HistoryBuffer.min``, ... as calls of ``getattr``.

    Raises:
        pickle.UnpicklingError: For any other object or name.
    """
    if obj is HistoryBuffer and name in STATISTICS:
        return getattr(obj, name)
    raise pickle.UnpicklingError(
        f'the checkpoint asks for getattr({obj!r}, {name!r}); '
        f'only {", ".join(STATISTICS)} of HistoryBuffer are allowed'
    )


def register_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read the checkpoints of MMEngine.

    Allowed are ``HistoryBuffer`` with its statistics and NumPy arrays and scalars of
    numbers, under the names that NumPy 1 and 2 write. Does nothing before torch 2.6,
    which does not load with ``weights_only=True`` unless asked to.
    """
    if _release(torch.__version__) < (2, 6):
        return
    module = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, (safe_getattr, 'builtins.getattr')]
    allowed += {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    for core in ('numpy.core', 'numpy._core'):
        allowed += [
            (module._reconstruct, f'{core}.multiarray._reconstruct'),
            (module.scalar, f'{core}.multiarray.scalar'),
        ]
    torch.serialization.add_safe_globals(allowed)


def warn_untested() -> None:
    """Warn once, in one sentence, of dependencies newer than the tested ones."""
    newer = []
    for name, tested in TESTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:  # built by hand, or vendored
            continue
        limit = _release(tested)
        if _release(found)[: len(limit)] > limit:
            newer.append(f'{name} {found} (tested: {tested})')
    if newer:
        warnings.warn(
            f'mmmpq has not been tested with {", ".join(newer)}; if something fails, '
            'try the versions in its requirements.txt',
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, ...]:
    """``'2.11.0+cu130'`` -> ``(2, 11, 0)``"""
    match = re.match(r'\d+(\.\d+)*', version)
    return tuple(int(part) for part in match[0].split('.')) if match else ()
