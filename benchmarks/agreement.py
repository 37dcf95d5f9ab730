"""How far a quantized classifier agrees with the float net, on unlabelled images.

label: the float net's class of every image becomes its label, in FOLDER/train.txt and
test.txt, and its logits of the test images are kept: with them the accuracy of every
tool of this repository is the agreement with the float net (configs/_base_/datasets/
crops.py), and a training learns from the float net.

measure: agreement, and KL(float || quantized) in nats, with 95 % intervals over images.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from rich.progress import track
from torch.nn import functional as F

from mmmpq.cli.flags.common import add_cfg_options
from mmmpq.engine.launch import load_config, run
from mmmpq.export.packed import load_packed
from mmmpq.fileio import atomic_write, check_file
from mmmpq.models import build_model, calibrate, calibrate_subnet
from mmmpq.models.loading import load_whole

LOGITS = 'test_logits.npy'
EPILOG = """examples
  mmmpq data lite0
  mmmpq data stamps --size 224 --train 5000 --test 5000 --objects 0 5 --out data/crops
  benchmarks/agreement.py label configs/float/efficientnet-lite0_crops_float.py \\
      data/lite0/efficientnet-lite0.pth data/crops
  benchmarks/agreement.py measure configs/float/efficientnet-lite0_crops_float.py \\
      data/lite0/efficientnet-lite0.pth data/crops --policy W4A4
  mmmpq ptq configs/float/efficientnet-lite0_crops_float.py \\
      data/lite0/efficientnet-lite0.pth --policy W4A8 --test-images 1000
  benchmarks/agreement.py measure configs/float/efficientnet-lite0_crops_float.py \\
      work_dirs/efficientnet-lite0_crops_float_ptq/net.safetensors data/crops
"""


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('verb', choices=('label', 'measure'))
    parser.add_argument('config', help='of a classifier with data like crops.py')
    parser.add_argument(
        'checkpoint', help='with --policy: of the float net; or a packed file (ptq)'
    )
    parser.add_argument('folder', type=Path, help='of the images')
    parser.add_argument(
        '--policy',
        help='measure: policy.json, or W4A4 and the like; ranges and BatchNorm are '
        'calibrated on training images, nothing is trained',
    )
    parser.add_argument(
        '--calibration', type=int, default=8, help='batches (default: %(default)s)'
    )
    parser.add_argument(
        '--images', type=int, help='measure: the first so many (default: all)'
    )
    parser.add_argument('--json', type=Path, help='measure: write the numbers there')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def read_config(args: argparse.Namespace) -> Config:
    """With the images of ``args.folder``."""
    cfg = load_config(args)
    init_default_scope(cfg.default_scope)  # a packed file builds its net in its own
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(args.folder)
    return cfg


@torch.no_grad()
def logits_of(model, loader, title: str) -> np.ndarray:
    """Logits ``(N, K)`` of the images of a loader, in its order."""
    model.eval()
    found = []
    for batch in track(loader, title):
        inputs = model.data_preprocessor(batch, False)['inputs']
        found.append(model(inputs, mode='tensor'))
    return torch.cat(found).float().numpy()


def label(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    model = build_model(cfg)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu')
    load_whole(model, checkpoint, args.checkpoint)
    for split in ('train', 'test'):
        names = sorted(path.name for path in (args.folder / split).glob('*.jpg'))
        if not names:
            raise FileNotFoundError(f'folder: found no .jpg in {args.folder / split}')
        annotations = args.folder / f'{split}.txt'
        atomic_write(annotations, ''.join(f'{name} 0\n' for name in names))
        dataset = dict(cfg.test_dataloader.dataset, ann_file=annotations.name)
        dataset['data_prefix'] = split
        loader = Runner.build_dataloader(dict(cfg.test_dataloader, dataset=dataset))
        logits = logits_of(model, loader, split)
        lines = zip(names, logits.argmax(1), strict=True)
        atomic_write(annotations, ''.join(f'{name} {k}\n' for name, k in lines))
    np.save(args.folder / LOGITS, logits)


def interval(values: np.ndarray) -> list[float]:
    """Mean of independent values, and half of its 95 % interval."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return [float(values.mean()), float(half)]


def compare(reference: np.ndarray, logits: np.ndarray) -> dict:
    """Agreement in per cent and KL in nats of logits ``(N, K)``, with intervals."""
    p = F.log_softmax(torch.from_numpy(reference), 1)
    q = F.log_softmax(torch.from_numpy(logits), 1)
    same = 100.0 * (reference.argmax(1) == logits.argmax(1))
    kl = (p.exp() * (p - q)).sum(1).numpy()
    return dict(n=len(kl), agreement=interval(same), kl=interval(kl))


def measure(args: argparse.Namespace) -> dict:
    check_file(str(args.folder / LOGITS), 'folder (label it first)')
    cfg = read_config(args)
    if args.checkpoint.endswith('.safetensors'):
        return compared(args, cfg, load_packed(args.checkpoint))
    model = build_model(cfg, args.policy)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu')
    if args.policy:
        model.load_state_dict(checkpoint['state_dict'], strict=False)
        torch.manual_seed(0)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = list(islice(loader, args.calibration))
        calibrate(model, batches)
        calibrate_subnet(model, batches)
    else:
        load_whole(model, checkpoint, args.checkpoint)
    return compared(args, cfg, model)


def compared(args: argparse.Namespace, cfg: Config, model: torch.nn.Module) -> dict:
    """Of a model on the test images, see :func:`compare`."""
    if args.images:
        cfg.test_dataloader.dataset.indices = args.images
    logits = logits_of(model, Runner.build_dataloader(cfg.test_dataloader), 'test')
    return compare(np.load(args.folder / LOGITS)[: len(logits)], logits)


def main() -> None:
    args = parse_args()
    if args.verb == 'label':
        label(args)
        return
    found = measure(args)
    print(
        f'agreement {found["agreement"][0]:.2f} ± {found["agreement"][1]:.2f} %, '
        f'KL {found["kl"][0]:.4f} ± {found["kl"][1]:.4f} nats, n = {found["n"]}'
    )
    if args.json:
        atomic_write(args.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    run(main)
