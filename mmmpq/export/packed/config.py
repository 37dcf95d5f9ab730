"""The config of a model as text from which it can be built without any other file."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from mmmpq.export.packed.untrusted import type_name
from mmmpq.models.elastic.genes import read_architecture

TUPLE = '()'


def rebuildable(
    config: Mapping[str, Any], quantized_with: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What of a config is needed to build its model, and to feed it: default scope,
    ``model`` and ``test_pipeline``, where it has one.

    ``data_preprocessor`` goes into the model, as the Runner puts it there, and the
    architecture of a subnet in the place of its file. Pretrained weights are left out,
    and ``quant`` has what the model says that it is quantized with.

    Args:
        config: A whole config.
        quantized_with: Of the model, as :func:`mmmpq.models.quantize` left it.
    """
    model = _plain(config['model'])
    outside = config.get('data_preprocessor')
    if outside is not None:
        model.setdefault('data_preprocessor', _plain(outside))
    if 'quant' in model:
        model['quant'] = quant = dict(quantized_with or {})
        if excluded := quant.pop('float_layers', ()):
            quant['exclude'] = excluded
    scope = config.get('default_scope')
    if scope is None:  # of a config that names classes: where its model is from
        kind = model.get('base_type', model.get('type', ''))
        scope = kind.rpartition('.')[0] or 'mmengine'
    plain = dict(default_scope=scope, model=model)
    pipeline = pipeline_of(config)
    return plain if pipeline is None else dict(plain, test_pipeline=_plain(pipeline))


def pipeline_of(config: Mapping[str, Any]) -> Any:
    """Of the dataset of a whole config, inside wrappers too; None: it has none."""
    data = (config.get('test_dataloader') or {}).get('dataset')
    while isinstance(data, Mapping) and 'pipeline' not in data:
        data = data.get('dataset') or next(iter(data.get('datasets') or ()), None)
    return data['pipeline'] if isinstance(data, Mapping) else None


def to_json(value: Any, key: str = 'model') -> str:
    """JSON in which ``{"()": [...]}`` is a tuple.

    Args:
        value: Numbers, texts, None, lists, tuples and dicts.
        key: What it is called where it comes from, for the message of an error.

    Raises:
        ValueError: Something in it has no JSON.
    """
    try:
        return json.dumps(_tagged(value), separators=(',', ':'))
    except TypeError as error:
        raise ValueError(
            f'{key}: it cannot be written as JSON ({error}); accepted are numbers, '
            'texts, lists, tuples, dicts and names of types'
        ) from error


def from_json(text: str) -> Any:
    """The value that :func:`to_json` was given."""
    return json.loads(text, object_hook=_untagged)


def _plain(value: Any) -> Any:
    """Without pretrained weights, and with names in the place of types."""
    if isinstance(value, Mapping):
        kept = {k: value[k] for k in value if k not in ('init_cfg', 'pretrained')}
        if str(kept.get('architecture')).endswith('.json'):
            kept['architecture'] = read_architecture(kept['architecture'])
        return {k: _plain(v) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if inspect.isclass(value) or inspect.isfunction(value):
        return type_name(value)
    return value


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        others = [k for k in value if not isinstance(k, str)]
        if others:
            raise TypeError(f'the key {others[0]!r} is no text')
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return {TUPLE: [_tagged(v) for v in value]}
    return [_tagged(v) for v in value] if isinstance(value, list) else value


def _untagged(value: dict) -> Any:
    return tuple(value[TUPLE]) if set(value) == {TUPLE} else value
