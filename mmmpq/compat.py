"""What the package does about its dependencies.

MMEngine, MMCV, MMDetection, MMPretrain and MMSegmentation come from OpenMMLab or as
maintained forks with the same import names. What is missing, untested or mixed is said
in one sentence, with the line that mends it. Nothing is imported before it was looked
for.

torch >= 2.6 loads checkpoints with ``weights_only=True``, and MMEngine's checkpoints
hold objects that this mode refuses. Switching the protection off would let a stranger's
checkpoint run code, so exactly the harmless classes found in them are allowed instead.
"""

import pickle
import re
import warnings
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

# The distributions behind each import name: those of the extra `openmmlab`, and those
# of the extra `onedl`, whose names begin so.
TOOLBOXES = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}

# The newest releases that the tests have run with, by the names of distributions.
TESTED = {
    'torch': '2.11',
    'numpy': '2.4',
    'mmengine': '0.10',
    'mmcv': '2.1',
    'mmcv-lite': '2.1',
    'mmdet': '3.3',
    'mmpretrain': '1.2',
    'mmsegmentation': '1.2',
    'onedl-mmengine': '0.10',
    'onedl-mmcv': '2.3',
    'onedl-mmdetection': '3.5',
    'onedl-mmpretrain': '1.3',
    'onedl-mmsegmentation': '1.4',
}

STATISTICS = ('min', 'max', 'current', 'mean')


def require() -> None:
    """Refuse, in one sentence, to go on without what every user of mmmpq needs.

    The toolboxes above MMEngine and MMCV are not among it: each is needed by its users
    alone.
    Nothing is imported for it.

    Raises:
        ImportError: torch, torchvision, MMEngine or MMCV is missing.
    """
    if missing := [name for name in ('torch', 'torchvision') if not _is_there(name)]:
        raise ImportError(
            f'mmmpq needs {" and ".join(missing)}: pip install torch torchvision'
        )
    if missing := [name for name in ('mmengine', 'mmcv') if not _is_there(name)]:
        # Of what pip still holds for installed, other files were laid over and removed.
        broken = [dist for name in missing for dist in _installed(name)]
        raise ImportError(f'mmmpq needs {" and ".join(missing)}: {_mend(broken)}')


@cache
def prepare() -> None:
    """Bring MMEngine and torch to where our configs and checkpoints work.

    Called once, before anything of ours is built: by :mod:`mmmpq.registry`, and by
    :mod:`mmmpq` itself where a toolbox is running already.

    Raises:
        ImportError: torchvision was built for another torch.
    """
    require_a_matching_torchvision()
    register_safe_globals()
    register_checkpoints()
    name_mmseg()
    import_module('mmmpq.user_config').install()
    warn_pkg_resources()


def require_a_matching_torchvision() -> None:
    """Raise an ImportError if torchvision was built for another torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f'torch {torch.__version__} and torchvision {_version("torchvision")} do '
            f'not match ({error}): pip uninstall -y torch torchvision, then pip '
            'install torch torchvision, both from one index'
        ) from error


def register_checkpoints() -> None:
    """Let MMEngine load a packed checkpoint, as by ``load_from='x.safetensors'``, and
    say in one line what is wrong with any local one.

    It takes the first prefix that matches, from the last in the alphabet: '~?', which
    every name has, comes before all schemes, and '' after them.
    """
    from mmengine.runner import CheckpointLoader

    from mmmpq.fileio import read_checkpoint

    def load(filename: str, map_location: Any = None) -> dict[str, Any]:
        packed = import_module('mmmpq.export.packed')
        return packed.load_from_packed(filename, map_location)

    CheckpointLoader.register_scheme(r'~?.*\.safetensors$', loader=load, force=True)
    CheckpointLoader.register_scheme('', loader=read_checkpoint, force=True)


def name_mmseg() -> None:
    """Let the forks' MMEngine find ``mmseg::…``: it looks for a distribution of the
    name that OpenMMLab's has."""
    from mmengine.config import utils

    if _version('mmsegmentation') is None:
        utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def safe_getattr(obj, name: str):
    """What a checkpoint gets for ``getattr``: the statistics of HistoryBuffer.

    Pickle writes the functions ``HistoryBuffer.min``, ... as calls of ``getattr``.

    Raises:
        pickle.UnpicklingError: For any other object or name.
    """
    from mmengine.logging import HistoryBuffer

    if obj is HistoryBuffer and name in STATISTICS:
        return getattr(obj, name)
    raise pickle.UnpicklingError(
        f'the checkpoint asks for getattr({obj!r}, {name!r}); '
        f'only {", ".join(STATISTICS)} of HistoryBuffer are allowed'
    )


def register_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read the checkpoints of MMEngine.

    Allowed are ``HistoryBuffer`` with its statistics and NumPy arrays and scalars of
    numbers, under the names that NumPy 1 and 2 write. Each is given with its name, as
    onedl-mmengine adds and removes the same classes without one around a load.

    onedl-mmengine also allows every ``getattr``, and loads what is refused once more
    without protection: here both families load through ``torch.load`` alone.

    Does nothing before torch 2.6, which does not load with ``weights_only=True``
    unless asked to.
    """
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import checkpoint

    if _release(torch.__version__) < (2, 6):
        return
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = torch.load
    module = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    classes = {HistoryBuffer, np.ndarray, np.dtype}
    classes |= {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    allowed = [(cls, f'{cls.__module__}.{cls.__qualname__}') for cls in classes]
    allowed.append((safe_getattr, 'builtins.getattr'))
    for core in ('numpy.core', 'numpy._core'):
        allowed += [
            (module._reconstruct, f'{core}.multiarray._reconstruct'),
            (module.scalar, f'{core}.multiarray.scalar'),
        ]
    torch.serialization.add_safe_globals(allowed)


def warn_mixed() -> None:
    """Warn once of distributions that wrote their files over each other."""
    mixed = [dists for name in TOOLBOXES if len(dists := _installed(name)) > 1]
    if mixed:
        named = ', '.join(' and '.join(dists) for dists in mixed)
        warnings.warn(
            f'files of one import name were written over each other by {named}: '
            f'{_mend([dist for dists in mixed for dist in dists])}',
            stacklevel=2,
        )


def warn_untested() -> None:
    """Warn once, in one sentence, of dependencies newer than the tested ones."""
    newer = []
    for name, tested in TESTED.items():
        found = _version(name)
        limit = _release(tested)
        if found and _release(found)[: len(limit)] > limit:
            newer.append(f'{name} {found} (tested: {tested})')
    if newer:
        warnings.warn(
            f'mmmpq has not been tested with {", ".join(newer)}; if something fails, '
            'try the tested versions',
            stacklevel=2,
        )


def warn_pkg_resources() -> None:
    """Warn if MMEngine will fail for want of ``pkg_resources``.

    OpenMMLab's imports it where a config names another package, as in
    ``_base_ = 'mmdet::…'``; the fork never does.
    """
    from mmengine.utils import get_installed_path

    needed = 'pkg_resources' in get_installed_path.__code__.co_names
    if needed and not _is_there('pkg_resources'):
        warnings.warn(
            "configs with _base_ = 'mmdet::…' or 'mmpretrain::…' will fail, as "
            f'mmengine {_version("mmengine")} reads pkg_resources for them, which '
            "setuptools 82 dropped: pip install 'setuptools<82'",
            stacklevel=2,
        )


def _is_there(name: str) -> bool:
    """Whether a package can be imported: a folder without ``__init__.py`` is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _version(dist: str) -> str | None:
    """Version of a distribution; None if it is not installed (or by hand, vendored)."""
    try:
        return metadata.version(dist)
    except metadata.PackageNotFoundError:
        return None


def _installed(name: str) -> list[str]:
    """The installed distributions that provide an import name of :data:`TOOLBOXES`."""
    return [dist for dist in TOOLBOXES[name] if _version(dist)]


def _mend(broken: list[str]) -> str:
    """The lines that install what is missing, of the family that is there if any is."""
    left = {dist for name in TOOLBOXES for dist in _installed(name)} - set(broken)
    forks = {dist.startswith('onedl-') for dist in left or broken}
    extras = [
        f"pip install 'mmmpq[{extra}]'"
        for extra, fork in (('openmmlab', False), ('onedl', True))
        if fork in forks or not forks
    ]
    remove = f'pip uninstall -y {" ".join(broken)}, then ' if broken else ''
    return remove + ' or '.join(extras)


def _release(version: str) -> tuple[int, ...]:
    """``'2.11.0+cu130'`` -> ``(2, 11, 0)``"""
    match = re.match(r'\d+(\.\d+)*', version)
    return tuple(int(part) for part in match[0].split('.')) if match else ()
