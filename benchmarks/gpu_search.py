"""Searches to their end through tools/train.py: what they find, and what CPUs found.

Digits as configured; shapes with fewer images and epochs. Then, on digits, one in
mixed precision with an average of the weights, which is resumed from its half as well.
Called by itself it makes ``results/gpu_reference``: the same searches on a CPU, one a
seed, from a float net of that seed, whose policies tell how far apart two runs are.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import combinations
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_records import Records, Settings, last_line, processor
from processes import ROOT, process, scalars

from mmmpq.policy import Policy, Precision

REFERENCE = ROOT / 'benchmarks/results/gpu_reference'
METRICS = dict(digits='accuracy/top1', shapes='coco/bbox_mAP')
FLOAT = dict(
    digits='configs/float/resnet_digits_float.py',
    shapes='configs/float/retinanet_shapes_float.py',
)
SEARCH = dict(
    digits='configs/bpnas/resnet_digits.py', shapes='configs/bpnas/retinanet_shapes.py'
)
# Where the schedules of both have their length.
T_MAX = dict(digits='param_scheduler.T_max', shapes='param_scheduler.1.T_max')
# Images (0: all) and epochs of the float net and of the search.
FULL = dict(digits=(0, 20, 20), shapes=(600, 4, 4))
TINY = dict(digits=(50, 0, 2), shapes=(8, 0, 1))


class Trainings:
    """The tools of this repository on one set, with data and float net of its own.

    Args:
        name: 'digits' or 'shapes'.
        work: Folder for all of it.
        seed: Of the float net and of the searches.
        sizes: Images, epochs of the float net (0: none), epochs of a search.
        threads: Of each process.
    """

    def __init__(
        self, name: str, work: Path, seed: int, sizes: tuple, threads: int
    ) -> None:
        self.name, self.seed, self.threads = name, seed, threads
        self.images, self.float_epochs, self.epochs = sizes
        self.folder = work / f'{name}-{seed}'
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = work / name
        self.float: Path | None = None

    def prepare(self) -> None:
        """Makes the data, unless they are there, and trains the float net."""
        command = [f'tools/dataset_converters/{self.name}.py', '--out', self.data]
        if self.name == 'shapes':
            command += ['--train', self.images, '--val', min(200, self.images)]
        process(self.folder, 'data', self.threads, *map(str, command))
        if self.float_epochs:
            folder, _ = self.train(FLOAT[self.name], 'float', self.float_epochs)
            self.float = Path((folder / 'last_checkpoint').read_text().strip())

    def train(
        self, config: str, title: str, epochs: int, *flags: str, **options: object
    ) -> tuple[Path, dict]:
        """Trains a config; its folder, and what the process took."""
        folder = self.folder / title
        options = {
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            T_MAX[self.name]: epochs,
            'default_hooks.checkpoint.interval': epochs,
            'default_hooks.logger.interval': 5,
            **self._data_options(),
            **options,
        }
        words = [f'{key}={value}' for key, value in options.items()]
        command = ['tools/train.py', config, '--seed', str(self.seed)]
        command += ['--work-dir', str(folder), *flags, '--cfg-options', *words]
        took = process(self.folder, title, self.threads, *command)
        return folder, took

    def search(
        self, title: str, epochs: int, *flags: str, **options: object
    ) -> tuple[Path, dict]:
        """A search from the float net: its folder, and a record."""
        options = {'load_from': self.float, **options}
        config = SEARCH[self.name]
        folder, took = self.train(config, title, epochs, *flags, **options)
        return folder, self._describe(folder, title, took)

    def _data_options(self) -> dict:
        root = f'{self.data}/'
        options = {f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val')}
        if self.name == 'shapes':
            options['val_evaluator.ann_file'] = f'{root}annotations/instances_val.json'
        elif self.images:
            for split in ('train', 'val'):
                options[f'{split}_dataloader.dataset.indices'] = self.images
        return options

    def _describe(self, folder: Path, title: str, took: dict) -> dict:
        policy = Policy.load(folder / 'policy.json')
        budget = policy.meta['budgets'][0]
        rows = scalars(folder)
        metrics = [row[METRICS[self.name]] for row in rows if METRICS[self.name] in row]
        times = [row['time'] for row in rows if 'loss' in row]
        return dict(
            set=self.name,
            run=title,
            seed=self.seed,
            ok=budget['cost'] <= budget['limit'],
            seconds=round(took['seconds'], 1),
            iteration_ms=round(median(times) * 1e3, 1),
            metric=metrics[-1] if metrics else None,
            spent=round(budget['cost'] / budget['limit'], 4),
            policy={name: str(p) for name, p in policy.layers.items()},
        )


def distance(one: dict, two: dict) -> float:
    """Bits by which two policies differ, a mean over weights and activations."""
    pairs = [(Precision.parse(one[name]), Precision.parse(two[name])) for name in one]
    return mean(abs(a - b) for p, q in pairs for a, b in zip(p, q, strict=True))


def compare(record: dict, reference: list[dict]) -> dict:
    """How far a policy is from those of the CPU, and these are from each other.

    'distance' is the mean of :func:`distance` to the seeds of the CPU, 'spread' the
    largest between two of them. ``ok`` takes half as much again, as one of three seeds
    may be that far from the others, and an accuracy below the least of them by no more
    than twice what they differ by.
    """
    policies = [r['policy'] for r in reference]
    spread = max(distance(a, b) for a, b in combinations(policies, 2))
    found = mean(distance(record['policy'], policy) for policy in policies)
    metrics = [r['metric'] for r in reference]
    least = min(metrics) - 2 * (max(metrics) - min(metrics))
    return dict(
        distance=round(found, 3),
        spread=round(spread, 3),
        cpu_metric=round(mean(metrics), 4),
        ok=record['ok'] and found <= 1.5 * spread and (record['metric'] or 0) >= least,
    )


def short(tiny: bool) -> dict:
    """Options of a search: a dry one measures no upgrades, which takes longest."""
    return {'custom_hooks.0.measure': 0} if tiny else {}


def plain_search(trainings: Trainings, tiny: bool) -> dict:
    """The search as configured, beside those of the CPU."""
    _, record = trainings.search('search', trainings.epochs, **short(tiny))
    reference = json.loads((REFERENCE / f'{trainings.name}.json').read_text())
    compared = compare(record, reference['runs'])
    if tiny:
        del compared['ok']
    return record | compared


def resumed(trainings: Trainings, tiny: bool) -> dict:
    """A search, and another that goes on from its half: the same to the end.

    Both in fp16 with a scaled loss (on a CPU bfloat16 without) and with EMAHook.
    Deterministic if all operators have such a form, and then to the last bit.
    """
    epochs = 2 if tiny else 10
    half = f'epoch_{epochs // 2}.pth'
    options = {
        'default_hooks.checkpoint.interval': epochs // 2,
        'default_hooks.ema.type': 'EMAHook',
        **short(tiny),
    }
    refused = None
    for deterministic in (True, False):
        options['randomness.deterministic'] = deterministic
        words = '-deterministic' if deterministic else ''
        try:
            whole, record = trainings.search(
                f'whole{words}', epochs, '--amp', **options
            )
            flags = ('--amp', '--resume', str(whole / half))
            again, second = trainings.search(
                f'resumed{words}', epochs, *flags, **options
            )
            break
        except ValueError as error:
            if not deterministic:
                raise
            refused = log_of(error)
    one, two = (
        torch.load(
            folder / f'epoch_{epochs}.pth', map_location='cpu', weights_only=False
        )
        for folder in (whole, again)
    )
    weights, others = one['state_dict'], two['state_dict']
    apart = [(a.double() - others[n].double()).abs().max() for n, a in weights.items()]
    difference = float(max(apart))
    record.update(
        run=f'AMP, EMA, resumed{words}',
        weights_differ_by=difference,
        loss_scale=one['optimizer'].get('loss_scaler', {}).get('scale'),
    )
    record['ok'] &= 'ema_state_dict' in one and record['loss_scale'] != 0
    record['ok'] &= record['policy'] == second['policy']
    record['ok'] &= difference == 0 if deterministic else difference < float('inf')
    return record | (dict(refused=refused) if refused else {})


def log_of(error: Exception) -> str:
    """The end of the log that an error of :func:`processes.process` names."""
    log = Path(str(error).rsplit(' ', 1)[-1])
    return log.read_text()[-2000:] if log.is_file() else str(error)


def run(records: Records, settings: Settings) -> None:
    """The stage: all searches, side by side where there are cores."""
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # for deterministic products
    os.environ['MMMPQ_TRACEBACK'] = '1'
    sizes = TINY if settings.tiny else FULL
    threads = 1 if settings.device == 'cpu' else 4
    sets = {
        name: Trainings(name, settings.work / 'search', 0, size, threads)
        for name, size in sizes.items()
    }
    todo: dict[str, tuple[Callable, ...]] = dict(
        digits=(resumed,) if settings.tiny else (plain_search, resumed),
        shapes=(plain_search,),
    )
    with ThreadPoolExecutor(settings.jobs) as pool:
        ready = {name: pool.submit(t.prepare) for name, t in sets.items()}
        started = {}
        for name, trainings in sets.items():
            ready[name].exception()  # waits
            for kind in todo[name]:
                call = _after(ready[name].result, kind, trainings, settings.tiny)
                started[pool.submit(call)] = dict(set=name, run=kind.__name__)
        for future in as_completed(started):
            try:
                records.add(**future.result())
            except Exception as error:
                records.add(
                    **started[future],
                    ok=False,
                    error=last_line(error),
                    log=log_of(error),
                )


def _after(prepared: Callable, kind: Callable, *args: object) -> Callable:
    """``kind(*args)``, or the error that ``prepared()`` raises."""

    def call() -> dict:
        prepared()
        return kind(*args)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--sets', nargs='+', choices=FULL, default=list(FULL))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/gpu')
    args = parser.parse_args()
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        runs = []
        for seed in args.seeds:
            work = args.work_dir.resolve()
            trainings = Trainings(name, work, seed, FULL[name], args.threads)
            trainings.prepare()
            _, found = trainings.search('search', trainings.epochs)
            print(name, found)
            runs.append({k: found[k] for k in ('seed', 'metric', 'spent', 'policy')})
        about = dict(
            command='python benchmarks/gpu_search.py',
            device=processor(),
            threads=args.threads,
            python=platform.python_version(),
            torch=torch.__version__,
            images_and_epochs=FULL[name],
        )
        lines = json.dumps(dict(about, runs=runs), indent=1) + '\n'
        (REFERENCE / f'{name}.json').write_text(lines)


if __name__ == '__main__':
    main()
