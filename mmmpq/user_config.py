"""A user's config file: code of somebody else, and what it says of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config with the settings of ``--cfg-options`` in it.

    Raises:
        ValueError: It cannot be run or merged, whatever the reason; or ``model``, or
            ``model.quant``, is no dict.
    """
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
