"""mmcv's operators without a compiler: which detectors run on them, and how fast.

``families`` builds one config of every folder of MMDetection's, takes a training step
and predicts, on two random images. Where mmcv is compiled, the loss and the norm of the
gradients are compared with those of the compiled operators. ``speed`` times a training
step and a prediction with compiled operators and with ours by turns, in one process;
it needs a compiled mmcv.
"""

import argparse
import copy
import gc
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmcv.ops  # noqa: F401
import mmdet
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmmpq import mmcv_ext

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
OTHER = ('_base_', 'common')  # no families
# Where the shortest name is not what the folder stands for, or needs larger images.
CONFIG = {
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'dcn': 'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'dcnv2': 'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
}
SIZE = {'ddod': 256, 'ddq': 256, 'dino': 256, 'ssd': 320}
SPEED = {
    'RetinaNet-R50': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'Mask R-CNN-R50': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
}


class Recorder:
    """Operators, and the names of those that were called."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.called = module, set()

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self.module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.called.add(name)
            return operator(*args, **kwargs)

        return call


@contextmanager
def operators(module: Any) -> Iterator[None]:
    """``mmcv.ops`` on the operators of ``module``."""
    users = [m for n, m in sys.modules.items() if n.startswith('mmcv.ops.')]
    users = [m for m in users if hasattr(m, 'ext_module')]
    before = [m.ext_module for m in users]
    for user in users:
        user.ext_module = module
    try:
        yield
    finally:
        for user, found in zip(users, before, strict=True):
            user.ext_module = found


def compiled() -> ModuleType | None:
    import mmcv._ext as ext

    return None if str(ext.__file__).endswith('.py') else ext


def build(config: Path) -> torch.nn.Module:
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(_without_downloads(cfg.model))
    model.init_weights()
    return model


def _without_downloads(cfg: Any) -> Any:
    if isinstance(cfg, dict):
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            cfg['init_cfg'] = None
        if 'pretrained' in cfg:
            cfg['pretrained'] = None
        for value in cfg.values():
            _without_downloads(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            _without_downloads(value)
    return cfg


def make_batch(size: int, n: int = 2) -> dict:
    """Random images with boxes, masks, semantic maps and proposals, all of class 0."""
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals

    batch = demo_mm_inputs(
        n, (3, size, size), num_items=[3] * n, with_mask=True, with_semantic=True
    )
    proposals = demo_mm_proposals([(3, size, size)] * n, 20)
    for sample, found in zip(batch['data_samples'], proposals, strict=True):
        sample.gt_instances.labels.zero_()
        sample.gt_sem_seg.sem_seg.zero_()
        sample.ignored_instances = sample.ignored_instances[:0]
        sample.proposals = found
    return batch


def train(model: torch.nn.Module, batch: dict) -> tuple[float, float]:
    """Loss and norm of its gradients; the same random numbers every time."""
    torch.manual_seed(0)
    model.train().zero_grad()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    return loss.item(), norm.item()


@torch.no_grad()
def predict(model: torch.nn.Module, batch: dict) -> int:
    return len(model.eval().test_step(copy.deepcopy(batch)))


def compare(model: torch.nn.Module, batch: dict, found: tuple) -> float | str | None:
    """The larger relative difference to compiled operators, or what these say."""
    if (ext := compiled()) is None:
        return None
    try:
        with operators(ext):
            exact = train(model, batch)
    except RuntimeError as error:  # some have compiled operators for GPUs only
        return str(error).splitlines()[0]
    if found == exact:  # two infinities as well
        return 0.0
    return max(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))


def no_download(*_: Any, **__: Any) -> None:
    raise OSError('it wants a file from the network')


def family(folder: Path, size: int) -> dict:
    """What one usual config of a folder does, small ones first."""
    config = CONFIG.get(folder.name)
    if config is None:
        names = [n.name for n in folder.glob('*.py') if not n.stem.endswith('tta')]
        config = min(names, key=lambda n: ('r50' not in n, len(n), n))
    row = dict(family=folder.name, config=config)
    recorder = Recorder(mmcv_ext)
    try:
        model = build(folder / config)
        twin = copy.deepcopy(model)  # some losses keep a moving average
        batch = make_batch(SIZE.get(folder.name, size))
        with operators(recorder):
            found = train(model, batch)
            predict(model, batch)
        row.update(fine=True, loss=found[0])
        row.update(fine=True, loss=found[0], compiled=compare(twin, batch, found))
        if not all(map(math.isfinite, found)):
            raise FloatingPointError(f'loss {found[0]:.4g}, its gradients {found[1]}')
    except Exception as error:
        line = (str(error).strip().splitlines() or [''])[0]
        row.update(fine=False, reason=f'{type(error).__name__}: {line}'[:200])
    row['operators'] = sorted(recorder.called)
    return row


def families(args: argparse.Namespace) -> list[dict]:
    torch.hub.load_state_dict_from_url = no_download
    CheckpointLoader._schemes.update(
        dict.fromkeys(('http://', 'https://'), no_download)
    )
    folders = [f for f in sorted(CONFIGS.iterdir()) if f.is_dir()]
    folders = [f for f in folders if f.name not in OTHER and [*f.glob('*.py')]]
    if args.only:
        folders = [f for f in folders if f.name in args.only]
    rows = []
    for folder in track(folders, 'detectors'):
        rows.append(family(folder, args.size))
        gc.collect()
        if args.json:  # a run cut short still tells
            args.json.write_text(json.dumps(rows, indent=1) + '\n')
    table = Table(title=f'{sum(r["fine"] for r in rows)} of {len(rows)} families run')
    for name in ('family', 'operators', 'compiled', 'reason'):
        table.add_column(name)
    for row in rows:
        found = row.get('compiled')
        table.add_row(
            row['family'],
            ', '.join(row['operators']),
            f'{found:.1e}' if isinstance(found, float) else found,
            row.get('reason'),
        )
    Console().print(table)
    return rows


def speed(args: argparse.Namespace) -> list[dict]:
    if (ext := compiled()) is None:
        raise SystemExit('speed compares with a compiled mmcv, and this one is not')
    torch.set_num_threads(args.threads)
    rows = []
    for name, config in SPEED.items():
        model, batch = build(CONFIGS / config), make_batch(args.size)
        for step in (train, predict):
            seconds = {'compiled': [], 'ours': []}
            for i in track(range(args.repeats + 1), f'{name} {step.__name__}'):
                turns = [('compiled', ext), ('ours', mmcv_ext)]
                for kind, module in turns[:: 1 if i % 2 else -1]:
                    with operators(module):
                        start = time.perf_counter()
                        step(model, batch)
                    if i:  # the first round warms up
                        seconds[kind].append(time.perf_counter() - start)
            pairs = zip(seconds['ours'], seconds['compiled'], strict=True)
            ratios = sorted(a / b for a, b in pairs)
            rows.append(
                dict(
                    model=name,
                    step=step.__name__,
                    size=args.size,
                    threads=args.threads,
                    repeats=args.repeats,
                    ratio=median(ratios),
                    quartiles=[ratios[len(ratios) // 4], ratios[-len(ratios) // 4]],
                    seconds={k: median(v) for k, v in seconds.items()},
                )
            )
    table = Table(title='time of ours / compiled, medians of pairs')
    for name in ('model', 'step', 'ratio', 'quartiles', 'seconds'):
        table.add_column(name)
    for row in rows:
        low, high = row['quartiles']
        table.add_row(
            row['model'],
            row['step'],
            f'{row["ratio"]:.3f}',
            f'{low:.3f} to {high:.3f}',
            f'{row["seconds"]["ours"]:.2f}',
        )
    Console().print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('what', choices=['families', 'speed'])
    parser.add_argument('--only', nargs='+', help='names of folders of configs')
    parser.add_argument('--size', type=int, default=128, help='pixels (default: 128)')
    parser.add_argument('--repeats', type=int, default=12)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--json', type=Path, help='write the rows there')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    rows = families(args) if args.what == 'families' else speed(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
