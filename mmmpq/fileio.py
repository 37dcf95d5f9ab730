"""Files that are whole or absent: written beside their place, then renamed."""

import difflib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _replace(path: str | Path, write: Callable[[str], None]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    try:
        write(beside)
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def atomic_write(path: str | Path, data: str | bytes) -> Path:
    """Writes text (UTF-8) or bytes to ``path``, making its folder if need be."""
    data = data.encode() if isinstance(data, str) else data
    return _replace(path, lambda beside: Path(beside).write_bytes(data) and None)


def atomic_save(obj: Any, path: str | Path) -> Path:
    """``torch.save`` to ``path``, making its folder if need be."""
    return _replace(path, lambda beside: torch.save(obj, beside))


def cache_folder() -> Path:
    """The user's cache folder of mmmpq: ``MMMPQ_CACHE``, or ~/.cache/mmmpq."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('MMMPQ_CACHE') or Path(base) / 'mmmpq')


def check_file(path: str, key: str) -> None:
    """Raise a FileNotFoundError that lists near names if a local file is missing."""
    if '://' in path or Path(path).expanduser().is_file():
        return
    folder = Path(path).expanduser().parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, names, n=3)
    hint = f'; near names there: {", ".join(near)}' if near else ''
    if not folder.is_dir():
        hint = f'; the folder {folder} does not exist either'
    raise FileNotFoundError(f'{key}: found no file {path}{hint}')
