"""Time and peak memory of one training step, against the float model's step.

Every variant is built from the same toolbox config. Times are paired: the variants
take turns in one process, and a ratio is the median over the rounds of (variant / float
of the same round); beside it stands the ratio of the fastest rounds, which a busy
machine disturbs less. Memory is measured in one fresh process per variant: on a CPU the
peak of the anonymous resident memory (RssAnon of Linux, read every 2 ms) over what it
was after the imports, with a malloc that gives freed tensors back at once: the model,
its gradients, the optimizer's state, activations and workspaces; on a GPU the peak of
the caching allocator.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmmpq  # noqa: F401
from mmmpq.costs import Budget
from mmmpq.models import calibrate
from mmmpq.search import SearchSpace, cost_tables, most_probable

ROOT = Path(__file__).resolve().parents[1]
# Name -> config, (batch, height, width).
INPUTS = {
    'resnet18': ('mmpretrain::resnet/resnet18_8xb32_in1k.py', (8, 224, 224)),
    'retinanet_shapes': ('configs/float/retinanet_shapes_float.py', (8, 128, 128)),
    'retinanet_r50': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', (1, 320, 320)),
}
GRID = [(w, a) for w in (2, 3, 4, 8) for a in (2, 3, 4)]
SUPERNET = dict(candidates=GRID, relaxation=dict(type='Softmax', factorised=True))
# Name -> quant, step; the float model's own step is what the others are compared to.
VARIANTS = {
    'float': (None, 'weight'),
    'W4A4': (dict(policy='W4A4'), 'weight'),
    'composite': (SUPERNET, 'weight'),
    'composite, logits': (SUPERNET, 'architecture'),
}

# glibc gives freed tensors back at once, so that what is resident is what is alive.
EXACT_MALLOC = dict(
    MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1'
)


def build(model: str, quant: dict | None) -> torch.nn.Module:
    """The toolbox's model with random weights; quantized if ``quant`` is given."""
    config = INPUTS[model][0]
    cfg = get_config(config) if '::' in config else Config.fromfile(ROOT / config)
    cfg = cfg.model
    init_default_scope('mmdet' if model.startswith('retinanet') else 'mmpretrain')
    if 'backbone' in cfg:
        cfg.backbone.init_cfg = None  # no download
    if 'data_preprocessor' not in cfg:
        cfg.data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
    if quant is not None:
        cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=quant)
    torch.manual_seed(0)
    return MODELS.build(cfg)


def make_batch(model: str, size: tuple) -> dict:
    """What the dataloader would give: random images with labels or boxes."""
    n, h, w = size
    rng = np.random.default_rng(0)
    images = [torch.tensor(rng.integers(0, 256, (3, h, w), np.uint8)) for _ in range(n)]
    samples = []
    for i in range(n):
        if not model.startswith('retinanet'):
            from mmpretrain.structures import DataSample

            samples.append(DataSample().set_gt_label(i))
            continue
        from mmdet.structures import DetDataSample

        corners = rng.random((4, 2)) * (w / 2, h / 2)
        boxes = np.concatenate([corners, corners + (w / 3, h / 3)], 1)
        gt = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.arange(4)
        )
        meta = dict(img_shape=(h, w), ori_shape=(h, w), scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(metainfo=meta, gt_instances=gt))
    return dict(inputs=images, data_samples=samples)


class Step:
    """One step of one variant: call it as often as wanted."""

    def __init__(self, model: str, variant: str, size: tuple, device: str) -> None:
        quant, self.kind = VARIANTS[variant]
        self.model = build(model, quant).to(device).train()
        self.batch = make_batch(model, size)
        if quant is not None:
            calibrate(self.model, [self.batch])
        if self.kind == 'architecture':
            self.logits = SearchSpace(self.model).logits
            for logits in self.logits:
                logits.requires_grad_(True)
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9)
        self.device = device

    def __call__(self) -> float:
        """Seconds of the step, without the making of its batch."""
        data = self.model.data_preprocessor(self.batch, True)
        self._wait()
        start = time.perf_counter()
        loss, _ = self.model.parse_losses(self.model._run_forward(data, mode='loss'))
        if self.kind == 'architecture':
            torch.autograd.grad(loss, self.logits)
        else:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()


def _anonymous() -> float:
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'RssAnon:\s+(\d+) kB', status)[1]) / 1024


def measure_memory(model: str, variant: str, size: tuple, device: str) -> float:
    """Peak of three steps in this process, in MiB."""
    before = peak = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step = Step(model, variant, size, device)
    for _ in range(3):
        step()
    done.set()
    watcher.join()
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    return peak - before


def memory_of(model: str, variant: str, args: argparse.Namespace) -> float:
    """:func:`measure_memory` in a fresh process."""
    command = [sys.executable, __file__, '--models', model, '--memory-of', variant]
    command += ['--device', args.device, '--threads', str(args.threads)]
    if args.size:
        command += ['--size', *map(str, args.size)]
    env = dict(os.environ, **EXACT_MALLOC)
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if result.returncode:
        raise RuntimeError(f'{model}, {variant}:\n{result.stderr[-2000:]}')
    return float(result.stdout.split()[-1])


def fastest(rounds: list[dict], variant: str) -> float:
    """The least disturbed round's seconds: of use on a machine that is not idle."""
    return min(r[variant] for r in rounds)


def measure(model: str, args: argparse.Namespace) -> list[dict]:
    """One record per variant of one model."""
    size = tuple(args.size or INPUTS[model][1])
    memory = {v: memory_of(model, v, args) for v in track(VARIANTS, f'{model}: memory')}
    steps = {v: Step(model, v, size, args.device) for v in VARIANTS}
    for step in steps.values():
        for _ in range(args.warmup):
            step()
    rounds = [
        {v: step() for v, step in steps.items()}
        for _ in track(range(args.repeats), f'{model}: time')
    ]
    return [
        dict(
            model=model,
            device=args.device_name,
            threads=args.threads,
            input=[size[0], 3, *size[1:]],
            variant=v,
            step=VARIANTS[v][1],
            candidates=len((VARIANTS[v][0] or {}).get('candidates', [None])),
            time_ratio=round(median(r[v] / r['float'] for r in rounds), 3),
            fastest_ratio=round(fastest(rounds, v) / fastest(rounds, 'float'), 3),
            memory_ratio=round(memory[v] / memory['float'], 3),
            seconds=round(median(r[v] for r in rounds), 4),
            memory_mib=round(memory[v], 1),
        )
        for v in VARIANTS
    ]


def measure_search_setup(args: argparse.Namespace) -> list[dict]:
    """Seconds before and after a search: profile, cost tables, the solved policy."""
    model = build('retinanet_r50', SUPERNET)
    start = time.perf_counter()
    space = SearchSpace(model)
    shape = (3, 800, 1333)
    budgets = [
        dict(type=t, limit='W3A3', input_shape=shape) for t in ('BOPs', 'WeightBytes')
    ]
    tables = cost_tables(model, space, [Budget.build(b) for b in budgets])
    profiled = time.perf_counter()
    choice = most_probable(space, tables)
    solved = time.perf_counter()
    policy = space.policy(choice)
    assert all(t.of(policy) <= t.limit for t in tables)
    common = dict(model='retinanet_r50', device=args.device_name, input=[1, *shape])
    common.update(candidates=len(GRID), groups=len(space.groups), budgets=2)
    return [
        dict(common, step='profile', seconds=round(profiled - start, 3)),
        dict(common, step='solve', seconds=round(solved - profiled, 3)),
    ]


def show(console: Console, records: list[dict]) -> None:
    """Prints the records as a table."""
    table = Table(title='One step, as multiples of the float step')
    for name in ('model', 'variant', 'step'):
        table.add_column(name)
    for name in ('time', 'fastest', 'memory', 'seconds', 'MiB'):
        table.add_column(name, justify='right')
    for r in records:
        ratios = ('time_ratio', 'fastest_ratio', 'memory_ratio')
        table.add_row(
            r['model'],
            r.get('variant', ''),
            r['step'],
            *(f'{r[k]:.2f}x' if k in r else '' for k in ratios),
            f'{r["seconds"]:.3f}',
            f'{r["memory_mib"]:.0f}' if 'memory_mib' in r else '',
        )
    console.print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--models', nargs='*', choices=list(INPUTS), default=['resnet18']
    )
    parser.add_argument('--size', nargs=3, type=int, metavar=('N', 'H', 'W'))
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument(
        '--search-setup',
        action='store_true',
        help='also profile RetinaNet-R50 at 800x1333 and solve its policy',
    )
    parser.add_argument('--json', metavar='FILE', help='write the records there')
    parser.add_argument('--memory-of', choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device_name = (
        torch.cuda.get_device_name()
        if args.device == 'cuda'
        else f'{os.cpu_count()} cores, CPU'
    )
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        size = tuple(args.size or INPUTS[args.models[0]][1])
        print(measure_memory(args.models[0], args.memory_of, size, args.device))
        return
    records = [record for model in args.models for record in measure(model, args)]
    if args.search_setup:
        records += measure_search_setup(args)
    show(Console(), records)
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=2) + '\n')


if __name__ == '__main__':
    main()
