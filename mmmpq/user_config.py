"""A user's config file: code of somebody else, and what it says of the model."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from mmmpq.fileio import check_file


def config_file(name: str, key: str = 'config') -> str:
    """The file of a config: its path, or a toolbox's name of it, ``mmdet::fcos/x.py``.

    Raises:
        FileNotFoundError: There is none; lists near names.
    """
    if '::' in name:
        try:
            return Config._get_cfg_path(name, '')[0]
        except Exception as error:
            raise FileNotFoundError(
                f'{key}: found {name!r}: {" ".join(str(error).split())}; accepted is '
                'a name such as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
            ) from error
    check_file(name, key)
    return name


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config with the settings of ``--cfg-options`` in it.

    Args:
        path: As of :func:`config_file`.

    Raises:
        FileNotFoundError: There is no such config; lists near names.
        ValueError: It cannot be run or merged, whatever the reason; or ``model``, or
            ``model.quant``, is no dict.
    """
    path = config_file(str(path))
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except Exception as error:
        raise ValueError(
            f'config: {path} cannot be read: {type(error).__name__}: '
            + ' '.join(str(error).split())
        ) from error
    model = config.get('model')
    if not isinstance(model, Mapping):
        raise ValueError(
            f'config: {path}: model: found {model!r:.60}; accepted is a dict such as '
            "dict(type='RetinaNet', ...)"
        )
    if not isinstance(model.get('quant', {}), Mapping):
        raise ValueError(
            f'config: {path}: model.quant: found {model["quant"]!r:.60}; accepted is a '
            "dict such as dict(candidates=['W2A2', 'W4A4'])"
        )
    return config


def type_name(cfg: Mapping) -> str:
    """The type that a config names, without where it is from: a text, or a class."""
    kind = cfg.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def scope_of(config: Mapping) -> str:
    """The default scope; of a config that names classes, the toolbox of its model's.

    Empty where there is none.
    """
    model = config.get('model') or {}
    kind = model.get('base_type', model.get('type'))
    packages = [c.__module__.partition('.')[0] for c in getattr(kind, '__mro__', ())]
    toolboxes = (p for p in packages if p in MODELS.children)
    return config.get('default_scope') or next(toolboxes, '')


def install() -> None:
    """Has every config find our files from any folder, by whatever tool it is read."""
    init = Config.__init__

    @functools.wraps(init)
    def read(config: Config, *args: Any, **kwargs: Any) -> None:
        init(config, *args, **kwargs)
        if config.filename is not None:
            anchor_paths(config, Path(os.path.abspath(config.filename)).parent)

    Config.__init__ = read


def anchor_paths(config: Mapping, folder: Path) -> None:
    """Makes relative paths of our files absolute that are not there, but in ``folder``.

    They are policies, hardware profiles, latency tables, chips and what teachers are
    made of.
    """
    for owner, keys in _files(config):
        for key in keys:
            name = owner.get(key)
            if not isinstance(name, str) or len(name) > 4096 or Path(name).exists():
                continue
            if (folder / name).is_file():
                owner[key] = str(folder / name)


def _files(config: Mapping) -> Iterator[tuple[dict, tuple[str, ...]]]:
    """Dicts of a config, with the keys of theirs that name files of ours."""
    for found in dicts(config.get('model')):
        if isinstance(found.get('quant'), dict):
            yield found['quant'], ('policy', 'hardware')
    for hook in dicts(config.get('custom_hooks')):
        yield hook, ('table', 'chip')  # of a budget's or penalty's cost
        if isinstance(hook.get('teacher'), dict):
            yield hook['teacher'], ('config', 'checkpoint')


def dicts(value: Any) -> Iterator[dict]:
    """All dicts in a part of a config."""
    if isinstance(value, dict):
        yield value
        value = list(dict.values(value))  # builds no lazy object
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from dicts(each)
