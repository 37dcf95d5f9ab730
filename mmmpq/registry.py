"""Registries of mmmpq: children of MMEngine's, all in the scope ``mmmpq``.

A type is written ``mmmpq.Name`` from a config whose default scope is another one. The
scope is found by its package name, so that this works with ``custom_imports`` and, once
mmmpq is installed, without.
"""

from collections.abc import Callable
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry as MMEngineRegistry

from mmmpq import compat
from mmmpq.arguments import checks_arguments
from mmmpq.policy import near

compat.prepare()


class Registry(MMEngineRegistry):
    """A registry of classes that check their arguments, whoever builds them."""

    def _register_module(self, module: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(module, type):
            module = checks_arguments()(module)
        super()._register_module(module, *args, **kwargs)


MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmmpq', locations=['mmmpq.models']
)
HOOKS = Registry(
    'hook', parent=MMENGINE_HOOKS, scope='mmmpq', locations=['mmmpq.engine.hooks']
)
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope='mmmpq', locations=['mmmpq.datasets']
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmmpq',
    locations=['mmmpq.datasets'],
)
QUANTIZERS = Registry('quantizer', scope='mmmpq', locations=['mmmpq.quantizers'])
RELAXATIONS = Registry('relaxation', scope='mmmpq', locations=['mmmpq.layers'])
MIXINGS = Registry('mixing', scope='mmmpq', locations=['mmmpq.layers'])
COSTS = MMEngineRegistry('cost', scope='mmmpq', locations=['mmmpq.costs'])
LOSSES = Registry('loss', scope='mmmpq', locations=['mmmpq.losses'])

# Functions: what a model's quantization asks of rooms that stand upon it.
FINDERS = MMEngineRegistry(
    'finder', scope='mmmpq', locations=['mmmpq.export.onnx.found']
)


def class_of(registry: MMEngineRegistry, kind: Any, key: str) -> Callable:
    """The class that a config names by its type, as the toolboxes find it.

    Args:
        registry: One of MMEngine's: its child of the default scope is asked, too.
        kind: The type: a name, or the class itself.
        key: That names it, for the message of the error.

    Raises:
        ValueError: There is no such class (near names).
    """
    if callable(kind):
        return kind
    with registry.switch_scope_and_registry(None) as own:
        cls = own.get(str(kind))
    if cls is None:
        names = dict.fromkeys((*own.module_dict, *registry.module_dict))
        raise ValueError(f'{key}: found {kind!r}; {near(str(kind), names)}')
    return cls


def build(registry: Registry, cfg: dict, key: str = '', **default_args: Any) -> Any:
    """Builds one of mmmpq's own parts, whatever the default scope of the config is.

    Args:
        registry: Of its kind.
        cfg: Its config.
        key: That holds it, for the messages of errors.
        **default_args: Arguments that ``cfg`` does not name.

    Raises:
        ValueError: ``cfg`` names no type, or one that does not exist (near names).
    """
    key = key or registry.name
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError(f'{key}: found {cfg!r}; accepted is a dict with the key type')
    kind = cfg['type']
    classes = registry.module_dict
    name = kind.rpartition('.')[2] if isinstance(kind, str) else None
    if not isinstance(kind, type) and name not in classes:
        raise ValueError(f'{key}.type: found {kind!r}; {near(str(kind), classes)}')
    return registry.build(dict(cfg, _scope_='mmmpq'), default_args=default_args)
