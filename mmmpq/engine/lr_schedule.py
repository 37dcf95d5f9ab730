"""Schedules and hooks of a training that is shorter than the one they are made for."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import Runner

from mmmpq.user_config import dicts, type_name

COUNTED = ('begin', 'end', 'total_steps', 'step_size')
LATE = ('switch_epoch', 'begin_epoch', 'action_epoch')  # of hooks that wait


def fit_schedule(cfg: Config) -> list[str]:
    """Scales what ends, or fires, after the training of a quantized net, in place.

    An epoch n of the schedule becomes ``⌊n · length / whole⌋``, at least 1, where whole
    is the length of the nearest base whose training the schedule fits; schedulers of no
    length are left out. So are the epochs at which hooks switch pipelines or modes, and
    phases in iterations, as those of 300 epochs, of the base that they are written in.

    Returns:
        A line for each change.

    Raises:
        ValueError: A scheduler begins after the training, names no end, and neither
            does any base say how long it was to be.
    """
    train = cfg.get('train_cfg') or {}
    key = next((k for k in ('max_epochs', 'max_iters') if train.get(k)), '')
    length = train.get(key)
    quantized = any(type_name(d) == 'QuantModel' for d in dicts(cfg.get('model')))
    if not quantized or not isinstance(length, int):
        return []
    unit = key.removeprefix('max_')
    schedulers = [s for s in dicts(cfg.get('param_scheduler')) if _is_in(s, unit)]
    written, whole, notes = cfg.get('param_scheduler'), 0, []
    if max(map(_last, schedulers), default=0) > length:
        whole = _written_for(cfg, key, schedulers)
        cfg.param_scheduler = _fitted(cfg.param_scheduler, unit, whole, length)
        notes.append(
            f'param_scheduler: made for {whole} {unit}, the training has {length}; '
            f'its {unit} were multiplied by {length}/{whole}. To have another, paste '
            f'param_scheduler = {_plain(cfg.param_scheduler)} and change it'
        )
    if unit == 'epochs':
        notes += _fit_phases(cfg, written, length)
        notes += _fit_hooks(cfg, whole, length)
    return notes


def named_schedules(runner: Runner) -> None:
    """Has MMEngine's errors about schedules name the key, and the training's length."""
    build = runner.build_param_scheduler

    def build_param_scheduler(schedulers: Any) -> Any:
        try:
            return build(schedulers)
        except ValueError as error:
            raise ValueError(
                f'param_scheduler: {error}; the training has {runner.max_epochs} '
                f'epochs, {runner.max_iters} iterations in all: shorten it, such as by '
                '--cfg-options param_scheduler=None'
            ) from error

    runner.build_param_scheduler = build_param_scheduler


def warn_of_schedules(runner: Runner) -> None:
    """Names what was made for a longer training; ``mmmpq train`` has scaled it, other
    tools have not."""
    parts = {key: runner.cfg.get(key) for key in ('model', 'train_cfg')}
    parts['param_scheduler'] = copy.deepcopy(runner.cfg.get('param_scheduler'))
    hooks = runner.cfg.get('custom_hooks') or ()
    parts['custom_hooks'] = [copy.deepcopy(h) for h in hooks if isinstance(h, dict)]
    notes = fit_schedule(Config(parts, filename=runner.cfg.filename))
    if notes:
        notes = [f'not scaled, as `mmmpq train` does: {note}' for note in notes]
    schedulers = runner.param_schedulers or ()
    for index, each in enumerate(schedulers if isinstance(schedulers, list) else ()):
        end = runner.max_epochs if each.by_epoch else runner.max_iters
        if not notes and end < each.end < INF:
            unit = 'epochs' if each.by_epoch else 'iterations'
            notes.append(
                f'param_scheduler: {type(each).__name__} ends after {each.end} {unit}, '
                f'the training after {end}; --cfg-options '
                f'param_scheduler.{index}.end={max(end // 10, 1)} shortens it'
            )
    for note in notes:
        runner.logger.warning(note)


def _is_in(scheduler: dict, unit: str) -> bool:
    """Whether a scheduler counts in 'epochs', or else 'iters'."""
    return 'type' in scheduler and scheduler.get('by_epoch', True) == (unit == 'epochs')


def _last(scheduler: dict) -> int:
    """The length of the shortest training in which all of a scheduler acts; 0 of what
    is none: MMEngine says what is wrong."""
    try:
        begin = scheduler.get('begin', 0)
        end = scheduler.get('end', INF)
        return max(
            end if end < INF else begin + 1,
            begin + (scheduler.get('T_max') or 1),
            begin + sum(scheduler.get('periods', ())),
            max(scheduler.get('milestones', ()), default=0) + 1,
            scheduler.get('total_steps', 0),
        )
    except TypeError:
        return 0


def _written_for(cfg: Config, key: str, schedulers: list[dict]) -> int:
    """The length of the training that schedulers were made for."""
    last = max(map(_last, schedulers))
    for length in _lengths(cfg, key):
        if length >= last:
            return length
    index = [_last(s) for s in schedulers].index(last)
    if 'end' not in schedulers[index] and schedulers[index].get('begin') == last - 1:
        raise ValueError(
            f'param_scheduler: found {_plain(schedulers[index])}, and the '
            f'training ends before it begins, {key}={cfg.train_cfg[key]}; accepted is '
            'the end of the training that it was made for: --cfg-options '
            f'param_scheduler.{index}.end={10 * last}'
        )
    return last


def _files(cfg: Config) -> Iterator[Config]:
    """A config's file and its bases, nearest first, each with what it inherits."""
    files = [cfg.filename] if cfg.filename else []
    for path in files:  # grows meanwhile
        if not Path(path).is_file():
            continue
        yield Config.fromfile(path)
        bases = Config._get_base_files(path)
        files += [Config._get_cfg_path(base, path)[0] for base in bases]


def _lengths(cfg: Config, key: str) -> Iterator[int]:
    """The lengths of training of a config's file and of its bases, nearest first."""
    for base in _files(cfg):
        length = (base.get('train_cfg') or {}).get(key)
        if isinstance(length, int):
            yield length


def _at(n: float, whole: int, length: int) -> int:
    """Where an epoch of a training of length ``whole`` is in one of ``length``."""
    return max(int(n * length / whole + 1e-9), 1 if length > 1 and n > 0 else 0)


def _fitted(
    value: Any, unit: str, whole: int, length: int, last: float | None = None
) -> Any:
    """Schedulers, one or in lists and dicts, scaled; None for one of no length."""
    if isinstance(value, (list, tuple)):
        schedulers = [_fitted(v, unit, whole, length, last) for v in value]
        return [v for v in schedulers if v is not None]
    if not isinstance(value, dict):
        return value
    if 'type' not in value:
        return {k: _fitted(v, unit, whole, length, last) for k, v in value.items()}
    if not _is_in(value, unit):
        return value

    def at(n: float) -> int:
        return _at(n, whole, length)

    new, begin = dict(value), value.get('begin', 0)
    new.update({k: at(new[k]) for k in COUNTED if k in new})
    if new.get('T_max') is not None:
        new['T_max'] = max(at(begin + new['T_max']) - at(begin), 1)
    if 'periods' in new:
        new['periods'] = [max(at(n), 1) for n in new['periods']]
    if 'milestones' in new:
        new['milestones'] = sorted({at(n) for n in new['milestones']} - {0, length})
    if at(begin) >= new.get('end', length if last is None else last):
        return None
    return new


def _fit_phases(cfg: Config, written: Any, length: int) -> list[str]:
    """Scales schedulers that count iterations, where one begins after another: their
    training was to be as many epochs as that of the farthest base that has them."""
    counted = [s for s in dicts(written) if _is_in(s, 'iters')]
    if not any(s.get('begin') for s in counted):
        return []  # a warm-up alone
    whole = 0
    for base in _files(cfg):
        epochs = (base.get('train_cfg') or {}).get('max_epochs')
        same = _bare(base.get('param_scheduler')) == _bare(written)
        if same and isinstance(epochs, int):
            whole = epochs
    if whole <= length:
        return []
    cfg.param_scheduler = _fitted(cfg.param_scheduler, 'iters', whole, length, INF)
    return [
        f'param_scheduler: its iterations were made for {whole} epochs, the training '
        f'has {length}; they were multiplied by {length}/{whole}'
    ]


def _bare(schedulers: Any) -> list[dict]:
    """Schedulers without what inheritance adds to them."""
    return [{k: s[k] for k in s if k != '_scope_'} for s in dicts(schedulers)]


def _fit_hooks(cfg: Config, whole: int, length: int) -> list[str]:
    """Has hooks fire within the training, where they would not, or it was scaled."""
    notes = []
    for hook in dicts(cfg.get('custom_hooks')):
        for key in (*LATE, 'num_last_epochs'):
            old = hook.get(key)
            if not isinstance(old, int) or old <= 0 or not (whole or old >= length):
                continue
            span = whole or next((n for n in _lengths(cfg, 'max_epochs') if n > old), 0)
            span = max(span, old + 1)
            if key in LATE:
                hook[key] = min(_at(old, span, length), length - 1)
            else:
                hook[key] = length - min(_at(span - old, span, length), length)
            if hook[key] != old:
                notes.append(
                    f'custom_hooks: {type_name(hook) or "hook"}.{key} was {old}, of '
                    f'{span} epochs; it is {hook[key]}, of {length}'
                )
    return notes


def _plain(value: Any) -> str:
    """Python that one can paste: types by their names."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{k}={_plain(v)}" for k, v in value.items())})'
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(_plain, value))}]'
    return repr(type_name(dict(type=value)) if isinstance(value, type) else value)
