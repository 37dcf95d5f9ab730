"""What an iteration of a search takes beside forward, backward and weight step.

A real Runner with its SearchHook on random images. First the iterations as they are;
then with waits around each part, which hides nothing behind the device: 'other' is the
sum of all that is no part of the model's passes, an upper bound; then a profile.
"""

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from gpu_profile import counts, profiled, top
from gpu_records import Records, Settings
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from step_models import ROOT, make_batch

from mmmpq.engine.launch import build_runner

PASSES = 'passes of the model'  # their name in a profile
# Name of the model for random images -> its search.
SEARCHES = dict(
    retinanet_r50='configs/bpnas/retinanet_r50_coco.py',
    retinanet_shapes='configs/bpnas/retinanet_shapes.py',
    resnet_digits='configs/bpnas/resnet_digits.py',
)


@DATASETS.register_module()
class RandomImages(torch.utils.data.Dataset):
    """The images of :func:`step_models.make_batch`, again and again."""

    def __init__(self, model: str, size: list, length: int) -> None:
        batch = make_batch(model, tuple(size))
        self.items = [
            dict(inputs=i, data_samples=s)
            for i, s in zip(batch['inputs'], batch['data_samples'], strict=True)
        ]
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        item = self.items[index % len(self.items)]
        return dict(item, data_samples=item['data_samples'].clone())


class Watch(Hook):
    """Times iterations, then their parts, then profiles some.

    Args:
        plain, parts, profiled: Numbers of iterations; ``warmup`` come before.
        device: 'cpu' or 'cuda'.
    """

    priority = 'LOWEST'

    def __init__(
        self, warmup: int, plain: int, parts: int, profiled: int, device: str
    ) -> None:
        self.limits = (warmup, warmup + plain, warmup + plain + parts)
        self.total = self.limits[-1] + profiled
        self.device = device
        self.seconds: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.profiles: list = []
        self.syncs: Counter = Counter()
        self._timing = False
        self._now: dict[str, float] = defaultdict(float)
        self._after_forward = False

    def before_train(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if hasattr(hook, '_every'):
                hook._every = 10**9  # in a short run it would note every iteration
        loop, model, wrapper = runner.train_loop, runner.model, runner.optim_wrapper
        loop.run_iter = self._watched(loop.run_iter)
        model.data_preprocessor.forward = self._part(
            'data', model.data_preprocessor.forward
        )
        model._run_forward = self._part('forward', model._run_forward)
        model.parse_losses = self._part('forward', model.parse_losses)
        wrapper.backward = self._part('backward', wrapper.backward)
        wrapper.step = self._part('optimizer', wrapper.step)
        self._grad = torch.autograd.grad
        torch.autograd.grad = self._first_grad

    def after_train(self, runner: Runner) -> None:
        torch.autograd.grad = self._grad

    def _first_grad(self, *args, **kwargs):
        """The first one after a forward pass goes back through the model."""
        if not self._after_forward:
            return self._grad(*args, **kwargs)
        self._after_forward = False
        return self._part('backward', self._grad)(*args, **kwargs)

    def _part(self, name: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            self._after_forward |= name == 'forward'
            with torch.profiler.record_function(PASSES):
                if not self._timing:
                    return function(*args, **kwargs)
                start = self._time()
                try:
                    return function(*args, **kwargs)
                finally:
                    self._now[name] += self._time() - start

        return timed

    def _watched(self, run_iter: Callable) -> Callable:
        def watched(index: int, batch: dict) -> None:
            warmup, plain, parts = self.limits
            if index < warmup:
                return run_iter(index, batch)
            if index < plain:
                start = self._time()
                run_iter(index, batch)
                self.seconds.append(self._time() - start)
            elif index < parts:
                self._now.clear()
                self._timing = True
                start = self._time()
                run_iter(index, batch)
                total = self._time() - start
                self._timing = False
                other = total - sum(self._now.values())
                self.parts.append(dict(self._now, other=other))
            elif index == parts:
                with self._noting_syncs():
                    run_iter(index, batch)
            else:
                with profiled(self.device) as found:
                    run_iter(index, batch)
                self.profiles.append(found)

        return watched

    @contextmanager
    def _noting_syncs(self) -> Iterator[None]:
        """Counts the lines of Python that wait for the device."""
        if self.device != 'cuda':
            yield
            return
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode('default')
        for each in found:
            if 'synchroniz' in str(each.message):
                place = '/'.join(Path(each.filename).parts[-3:])
                self.syncs[f'{place}:{each.lineno}'] += 1

    def _time(self) -> float:
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()


def search_config(model: str, size: tuple, dtype: str, work: Path, length: int):
    """The config of a search on random images, ``length`` iterations of it."""
    cfg = Config.fromfile(ROOT / SEARCHES[model])
    cfg.merge_from_dict(dict(load_from=None, launcher='none'))
    cfg.work_dir = str(work / f'overhead-{model}-{dtype}')
    dataset = dict(
        type='RandomImages', model=model, size=list(size), length=length * size[0]
    )
    sampler = dict(type='DefaultSampler', shuffle=True)
    collate = 'pseudo_collate' if 'bbox_head' in cfg.model else 'default_collate'
    cfg.train_dataloader = dict(
        batch_size=size[0],
        num_workers=0,
        sampler=sampler,
        dataset=dataset,
        collate_fn=dict(type=collate),
    )
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.param_scheduler = None
    cfg.default_hooks.logger.interval = 10**6
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks[0].update(warmup=0, calibration=1, measure=0)
    if dtype != 'float32':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype, loss_scale=1.0)
    cfg.log_level = 'WARNING'
    return cfg


def measure(
    model: str, size: tuple, dtype: str, settings: Settings, watch: Watch
) -> dict:
    """The record of one search."""
    cfg = search_config(model, size, dtype, settings.work, watch.total)
    runner = build_runner(cfg)
    runner.register_hook(watch)
    runner.train()
    seconds = median(watch.seconds)
    names = ('data', 'forward', 'backward', 'optimizer', 'other')
    parts = {n: median(p.get(n, 0.0) for p in watch.parts) for n in names}
    found = watch.profiles[-1]
    return dict(
        model=model,
        dtype=dtype,
        input=list(size),
        iteration_ms=round(seconds * 1e3, 3),
        **{f'{name}_ms': round(s * 1e3, 3) for name, s in parts.items()},
        other_share=round(parts['other'] / sum(parts.values()), 4),
        of_iteration=counts(found),
        of_other=counts(found, outside=PASSES),
        waits_at=dict(watch.syncs.most_common(30)),
        **top(found),
    )


def run(records: Records, settings: Settings) -> None:
    """The stage."""
    todo = [
        ('retinanet_r50', (2, 800, 1333), 'float32'),
        ('resnet_digits', (50, 16, 16), 'float32'),
        ('retinanet_r50', (2, 800, 1333), 'bfloat16'),
    ]
    numbers = (5, 10, 8, 3)
    if settings.tiny:
        todo = [('retinanet_shapes', (1, 64, 64), 'float32')]
        numbers = (1, 1, 1, 2)
    for model, size, dtype in todo:
        watch = Watch(*numbers, settings.device)
        records.add(**measure(model, size, dtype, settings, watch))
