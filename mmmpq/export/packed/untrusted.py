"""Building a net from the config of a stranger's file: parts of registries alone."""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from threading import get_ident
from typing import Any

from mmengine.registry import MODELS, TASK_UTILS, Registry
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

SCOPES = ('mmengine', 'mmdet', 'mmpretrain', 'mmseg', 'mmmpq')
EVALUATING = ('CameraMotionCompensation',)  # Python of what its config says
OPTIONS = ('conv', 'dilation', 'offset')  # of CascadeRPN, and no types
# Words, and numbers within them such as 'regnetx_1.6gf': no path, address or module.
WORDS = re.compile(r'([\w\- ,()+]|(?<=\d)[./](?=\d))*')


def check_types(config: Any, scope: str, path: str) -> None:
    """Refuses types and scopes that are in no registry of MMEngine.

    A registry would import and call whatever a name says; a file from a stranger may
    not choose that.

    Args:
        config: Of a model.
        scope: Its default scope.
        path: Where it was read.

    Raises:
        ValueError: Such a type or scope; names it.
    """
    accepted = {*SCOPES, *(name for root in _roots() for name in root.children)}
    for kind, inside in _types(config, scope):
        if not isinstance(inside, str) or inside not in accepted:
            raise ValueError(
                f'{path}: found the scope {inside!r}; accepted are '
                f'{", ".join(sorted(accepted))}'
            )
        where, _, name = str(kind).rpartition('.')
        if kind is not None and not _known(where, name, inside):
            raise ValueError(
                f'{path}: found the type {kind!r}, which no registry knows; accepted '
                'are names such as "RetinaNet" and "mmdet.RetinaNet". If it is your '
                'own, import its module before the load'
            )


def check_texts(config: Any, path: str, key: str = 'model') -> None:
    """Refuses texts that could name a file, an address or a module.

    Some classes of the toolboxes read such a thing when they are built (a teacher's
    checkpoint, say), and reading it may run code; the net of a packed file needs none.
    What ``model.quant`` holds are names of layers.

    Raises:
        ValueError: Such a text; names its key.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name not in ('type', 'base_type', '_scope_'):  # see check_types
                inside = f'{key}.{name}'
                if inside != 'model.quant':
                    check_texts(value, path, inside)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_texts(value, path, key)
    elif isinstance(config, str) and not WORDS.fullmatch(config):
        raise ValueError(
            f'{path}: its config has {key}={config!r:.100}, which may be a file; '
            'accepted is a net that needs no other file'
        )


@contextmanager
def fewer_parameters(most: int) -> Iterator[None]:
    """Within it this thread builds no model of more than ``most`` parameters.

    Raises:
        ValueError: Inside, before the memory of the parameter beyond is written to.
    """
    thread, count = get_ident(), 0

    def add(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal count
        if get_ident() != thread or tensor is None:
            return
        count += tensor.numel()
        if count > most:
            raise ValueError(
                f'{type(module).__name__}.{name} of shape {list(tensor.shape)} is the '
                f'one beyond {most} numbers, of which the file has but a few'
            )

    hooks = [
        register(add)
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def type_name(kind: Any) -> str:
    """The name under which a registry holds a class or function.

    Raises:
        ValueError: None does.
    """
    for root in _roots():
        for place in (root, *root.children.values()):
            for name, found in place.module_dict.items():
                if found is kind:
                    return f'{place.scope}.{name}'
    if _operator(kind.__name__) is kind:
        return kind.__name__
    raise ValueError(
        f'model: found the type {kind!r}, which is in no registry; a packed file has '
        'names of registered types alone: give it to MODELS.register_module'
    )


def _roots() -> list[Registry]:
    packages = [f'{scope}.registry' for scope in SCOPES if find_spec(scope)]
    every = [root for name in packages for root in vars(import_module(name)).values()]
    others = [
        root for root in every if isinstance(root, Registry) and root.parent is None
    ]
    return [MODELS, TASK_UTILS, *others]  # what most nets need is imported first


def _known(where: str, name: str, scope: str) -> bool:
    if name in EVALUATING:
        return False
    for root in _roots():
        places = [r for r in (root, *root.children.values()) if r.scope == where]
        if not where:  # of the default scope, or MMEngine's own
            places = [root.children[scope]] if scope in root.children else []
            places.append(root)
        for place in places:
            place.import_from_location()
            if name in place.module_dict:
                return True
    return not where and (name in OPTIONS or _operator(name) is not None)


def _operator(name: str) -> Any:
    """One of mmcv, which RoI extractors and NMS look up by name; None if it is not."""
    try:
        import mmcv.ops
    except ImportError:  # mmcv-lite
        return None
    found = vars(mmcv.ops).get(name)
    return found if inspect.isclass(found) or inspect.isfunction(found) else None


def _types(config: Any, scope: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(config, Mapping):
        if config.get('trust_remote_code'):  # of transformers: runs what it downloads
            raise ValueError(
                'a packed checkpoint: found trust_remote_code in its config; accepted '
                'is a net of registered types alone'
            )
        scope = config.get('_scope_', scope)
        yield from ((config.get(key), scope) for key in ('type', 'base_type'))
        for value in config.values():
            yield from _types(value, scope)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _types(value, scope)
