"""The held-out split inside a Runner, and randomness that survives a resume."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner, set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from mmmpq.datasets import split_dataset
from mmmpq.models import decay
from mmmpq.models.loading import is_of_quantizing
from mmmpq.randomness import isolated_randomness

OTHER_ORDER = 15_485_863  # added to the seed of a sampler: epoch e has that of seed + e


def unwrapped(runner: Runner) -> nn.Module:
    """The toolbox's model, without DDP around it."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def warn_of_decay(runner: Runner) -> None:
    """As :func:`mmmpq.models.decay.warn_of_decay`, of all optimizers of a runner."""
    wrapper = runner.optim_wrapper
    several = isinstance(wrapper, OptimWrapperDict)
    for each in wrapper.values() if several else [wrapper]:
        decay.warn_of_decay(each.optimizer, unwrapped(runner))


def complete_float(runner: Runner, checkpoint: dict) -> None:
    """Gives the checkpoint of a float net, before a training, the model's own ranges
    and logits.

    They are begun anew next; MMEngine would list each of them as missing, in a line of
    thousands of characters.
    """
    state = checkpoint.get('state_dict', checkpoint)
    training = isinstance(runner._train_loop, BaseLoop) and not runner._resume
    if not training or any(map(is_of_quantizing, state)):
        return
    own = unwrapped(runner).state_dict()
    ranges = {name: own[name] for name in own if is_of_quantizing(name)}
    if not ranges:
        return
    completed = OrderedDict(state, **ranges)
    completed._metadata = getattr(state, '_metadata', OrderedDict())
    checkpoint['state_dict'] = completed
    runner.logger.info(
        f'{runner._load_from} is of a float net: {len(ranges)} tensors of ranges and '
        'logits are begun anew'
    )


def one_optimizer(runner: Runner, hook: str) -> None:
    """Raises ValueError where several optimizers train the model, step by step of its
    own; for hooks that take part in a step."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        raise ValueError(
            f'optim_wrapper: found {type(wrapper).__name__}; {hook} accepts one '
            'optimizer'
        )


def hold_out(runner: Runner, held_out: Any) -> DataLoader:
    """Splits the training set of ``runner`` and returns the held-out loader.

    The loop goes on with the rest: its length, and the schedules that were built for
    the length before, are made anew. Where nothing is split off it stays as it is.

    Args:
        runner: Before its run (``before_run``).
        held_out: A share of the training set, the config of another dataset, or None
            for all of the training set in another order.
    """
    loop = runner.train_loop
    if held_out is None:
        return _loader(runner, loop.dataloader.dataset, OTHER_ORDER)
    if isinstance(held_out, dict):
        return _loader(runner, copy.deepcopy(held_out))
    # The seed of the config, not the run's: where that one is drawn at random, a
    # resume must not hold out images that the weights have learned from.
    seed = runner._randomness_cfg.get('seed') or 0
    rest, held = split_dataset(loop.dataloader.dataset, held_out, seed)
    before = len(loop.dataloader)
    loop.dataloader = _loader(runner, rest)
    if len(loop.dataloader) == 0:
        raise ValueError(
            f'held_out={held_out}: the {len(rest)} samples left to train on make no '
            'batch; hold out less, or make batch_size smaller'
        )
    runner._train_dataloader = loop.dataloader
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
    elif len(loop.dataloader) != before:
        loop._max_iters = loop.max_epochs * len(loop.dataloader)
        _rebuild_schedulers(runner)
    return _loader(runner, held)


def train_batches(runner: Runner, count: int) -> list[Any]:
    """The first batches of the training set, the same in every run of a seed.

    They come from a loader of their own: the loop's keeps its place and its workers.

    Args:
        runner: A runner.
        count: How many; fewer if the set has no more.
    """
    loader = _loader(runner, runner.train_dataloader.dataset)
    return endless(runner, loader).take(min(count, len(loader)))


def first_batches(cfg: Config, count: int) -> list[Any]:
    """The first batches that a config trains on, the same ones always.

    Raises:
        ValueError: It has no train_dataloader.
    """
    loader = cfg.get('train_dataloader')
    if not loader:
        raise ValueError(
            'train_dataloader: found none; calibration takes batches of it'
        )
    here = dict(loader, num_workers=0, persistent_workers=False)
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    with isolated_randomness(seed):
        return list(islice(Runner.build_dataloader(here, seed=seed), count))


def endless(runner: Runner, loader: DataLoader) -> 'Batches':
    """The batches of one of this module's loaders, epoch after epoch."""
    batches = Batches(loader, seed=runner.seed or 0)
    batches.renew = partial(_loader, runner, loader.dataset)
    return batches


def _loader(runner: Runner, dataset: Any, order: int = 0) -> DataLoader:
    """A loader like the one for training, of another dataset (or its config).

    ``order`` is added to the seed of its sampler.
    """
    return Runner.build_dataloader(
        dict(runner.cfg.train_dataloader, dataset=dataset),
        seed=runner.seed + order,
        diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
    )


def _rebuild_schedulers(runner: Runner) -> None:
    if not runner.cfg.get('param_scheduler'):
        return
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, dict) else [wrapper]
    for each in wrappers:
        for group in each.optimizer.param_groups:
            for key in [k for k in group if k.startswith('initial_')]:
                group[key[len('initial_') :]] = group.pop(key)
    cfg = copy.deepcopy(runner.cfg.param_scheduler)
    runner.param_schedulers = runner.build_param_scheduler(cfg)


class Batches:
    """Batches of a loader without end, from a position that a checkpoint can hold.

    The randomness of each batch follows from its position and leaves the generators of
    training as they were.

    Args:
        loader: A loader.
        position: Batches taken before, over all epochs.
        seed: Of the augmentations, with the position.

    Attributes:
        renew: Makes such a loader, with a number added to the seed of its sampler;
            needed where that one knows no epochs (``InfiniteSampler``).

    Raises:
        ValueError: The loader gives no batch at all.
    """

    def __init__(self, loader: DataLoader, position: int = 0, seed: int = 0) -> None:
        if len(loader) == 0:
            raise ValueError(
                f'held_out: its {len(loader.dataset)} samples make no batch; hold out '
                'more, or make batch_size smaller, or set drop_last=False'
            )
        self.loader = loader
        self.position = position
        self.seed = seed
        self.renew: Callable[[int], DataLoader] | None = None
        self._iterator: Iterator = iter(())
        self._left = 0

    def __next__(self) -> Any:
        if self._left == 0:
            self._start(*divmod(self.position, len(self.loader)))
        with isolated_randomness(self.seed + 7_919 * self.position):
            batch = next(self._iterator, None)
        if batch is None:
            return self._next_epoch()
        self._left -= 1
        self.position += 1
        return batch

    def _next_epoch(self) -> Any:
        """The first batch of the next epoch: a sampler that makes batches of images of
        one kind, and drops what is left over, may end before its length."""
        if self._left == len(self.loader):
            raise ValueError(
                f'train_dataloader: its sampler makes no batch of '
                f'{len(self.loader.dataset)} samples; accepted is one that does in '
                'every epoch: make batch_size smaller'
            )
        self.position += self._left
        self._left = 0
        return next(self)

    def _start(self, epoch: int, done: int) -> None:
        by_epoch = False
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            inner = getattr(sampler, 'sampler', sampler)
            if hasattr(inner, 'set_epoch'):
                inner.set_epoch(epoch)
                by_epoch |= getattr(inner, 'epoch', None) == epoch
        if epoch and not by_epoch and self.renew is not None:
            # One without end gives its indices but once: another order has another one.
            self.loader = self.renew(OTHER_ORDER + epoch)
        with isolated_randomness(self.seed + epoch):
            self._iterator = iter(self.loader)
            for _ in range(done):  # a resume in the middle of an epoch
                next(self._iterator)
        self._left = len(self.loader) - done

    def take(self, count: int) -> list[Any]:
        return [next(self) for _ in range(count)]


class Reseeding:
    """A batch iterator that seeds all generators before each batch, by its number.

    An iteration-based loop that resumes replays the batches that it has had; with this,
    what is random in the next one is what it would have been.
    """

    def __init__(self, iterator: Iterator, runner: Runner) -> None:
        self.iterator, self.runner, self.count = iterator, runner, 0

    def __next__(self) -> Any:
        reseed(self.runner, self.count)
        self.count += 1
        return next(self.iterator)

    def skip_iter(self, count: int) -> None:
        """The replay of onedl-mmengine's loop: batch by batch, as MMEngine's own is.

        Its faster one, of samplers alone, would leave data workers at other numbers.
        """
        for _ in range(count):
            next(self)


def reseed(runner: Runner, number: int) -> None:
    """Seeds Python, NumPy and torch by the run's seed and ``number``."""
    diff = runner._randomness_cfg.get('diff_rank_seed', False)
    set_random_seed(((runner.seed or 0) + 1_000_003 * number) % 2**31, False, diff)
