"""From a config to its model, without a Runner and without a download."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.user_config import scope_of, type_name

PRETRAINED = ('Pretrained', 'PretrainedInit')  # the name, and the class


def build_model(cfg: Config, policy: str | Path | None = None) -> nn.Module:
    """The model of a whole config, with the ``data_preprocessor`` that it names.

    Args:
        cfg: It is not changed. Without a ``default_scope`` MMDetection's is taken.
        policy: Fixed precisions in place of what the config says, as in ``quant``; a
            float model is quantized.
    """
    init_default_scope(scope_of(cfg) or 'mmdet')
    model = copy.deepcopy(cfg.model)  # some models write into their config
    _without_pretrained(model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model if policy is None else _with_quant(model, policy))


def _with_quant(model: ConfigDict, policy: str | Path) -> ConfigDict:
    """The config of a model with a policy, wrapped in QuantModel if it is not yet."""
    if type_name(model) != 'QuantModel':
        base = model.pop('type')
        model.update(type='mmmpq.QuantModel', base_type=base, quant=dict())
    model['quant']['policy'] = policy
    return model


def _without_pretrained(cfg: Any) -> None:
    """Takes out what would download weights when the model is built."""
    if isinstance(cfg, dict):
        for key, value in list(cfg.items()):
            pretrained = isinstance(value, dict) and type_name(value) in PRETRAINED
            if key == 'init_cfg' and pretrained:
                cfg[key] = None
            elif key == 'pretrained':
                cfg[key] = None if not isinstance(value, bool) else False
            else:
                _without_pretrained(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            _without_pretrained(value)
