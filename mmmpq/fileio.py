"""Files that are whole or absent, written beside their place; checkpoints read."""

import contextlib
import difflib
import json
import math
import os
import re
import tempfile
import zipfile
import zlib
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


def strict_json(text: str) -> Any:
    """The value of JSON that somebody may have written by hand.

    Raises:
        ValueError: It is none, is nested too deep, or has a key twice, or a number
            that is not finite.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in entries if names.count(name) > 1)
            raise ValueError(f'the key {twice!r} is there twice')
        return entries

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f'found {number:.40}; accepted are finite numbers')
        return float(number)

    def finite_int(number: str) -> int:
        finite(number)  # that of an int fails where a float is made of it
        return int(number)

    try:
        return json.loads(
            text,
            object_pairs_hook=once,
            parse_constant=finite,
            parse_float=finite,
            parse_int=finite_int,
        )
    except RecursionError as error:
        raise ValueError('it is nested too deep') from error


def check_place(path: str | Path, key: str) -> str:
    """Whether a file can be written, before what it is to hold is computed.

    Args:
        path: Of the file.
        key: The flag that names it, for the message of an error.

    Returns:
        What to say of the file later: '', or ', replaced' where there is one now.

    Raises:
        ValueError: A folder is there, its folder is a file, or may not be written to.
    """
    path = Path(path).expanduser().absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir():
        raise ValueError(f'{key}: {path} is a folder; accepted is the name of a file')
    if not folder.is_dir():
        raise ValueError(f'{key}: {folder} is a file; accepted is a file in a folder')
    if not os.access(folder, os.W_OK):
        raise ValueError(f'{key}: the folder {folder} may not be written to')
    return ', replaced' if path.exists() else ''


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """A checkpoint of MMEngine, or a state dict, under ``torch.load``'s protection.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, is no checkpoint, or asks for more than weights: the
            last whole one beside it is named.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint: found no file {path}')
    try:
        content = torch.load(path, map_location=map_location)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a pickle may raise any
        text = str(error)
        match = re.search(r'asks for (.+?);|GLOBAL (\S+)|Unsupported class (\S+)', text)
        if match:
            fault = (
                f'asks for {next(filter(None, match.groups()))}, which may run code; '
                'accepted are tensors, numbers and texts'
            )
        else:
            # torch puts advice to switch its protection off before the reason
            reason = text.rpartition('WeightsUnpickler error: ')[2]
            reason = '' if reason.startswith('Weights only') else reason.strip()
            reason = ': '.join([type(error).__name__, *reason.splitlines()[:1]])
            fault = f'is damaged, or holds more than weights: {reason:.200}'
        raise ValueError(f'checkpoint: {path} {fault}{_whole_beside(path)}') from error
    state = content.get('state_dict', content) if isinstance(content, dict) else content
    meta = content.get('meta') if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not all(isinstance(key, str) for key in state)
        or not isinstance(meta, dict | None)
    ):
        raise ValueError(
            f'checkpoint: {path} holds {type(state).__name__} {state!s:.60}; accepted '
            f'is a dict of tensors by name, alone or as state_dict{_whole_beside(path)}'
        )
    return content


def _whole_beside(path: Path) -> str:
    """Names the newest whole checkpoint of the run that wrote one that is not."""

    def kind(other: Path) -> str:  # 'epoch_' of epoch_12.pth
        return other.stem.rstrip('0123456789')

    others = [
        other
        for other in path.parent.glob('*.pth')
        if other.name != path.name and kind(other) == kind(path)
    ]
    for other in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        faults = contextlib.suppress(OSError, zipfile.BadZipFile, zlib.error)
        with faults, zipfile.ZipFile(other) as file:
            if file.testzip() is None:
                return f'; the last whole checkpoint beside it is {other}'
    return ''


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
    if Path(path).expanduser().is_dir():
        hint = ', but a folder of this name'
    elif not folder.is_dir():
        hint = f'; the folder {folder} does not exist either'
    raise FileNotFoundError(f'{key}: found no file {path}{hint}')
