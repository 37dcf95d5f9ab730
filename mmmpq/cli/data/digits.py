"""Makes the digits classification set: scikit-learn's 1,797 scans, with noise."""

from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from sklearn.datasets import load_digits

from mmmpq.cli.data.new_folder import make_folder
from mmmpq.cli.flags.data.digits import SCANS, parse_args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = {k: v for k, v in vars(args).items() if k != 'out'}

    def fill(folder: Path) -> None:
        scans = load_digits()
        rng = np.random.default_rng(args.seed)
        for split in ('train', 'val'):
            for digit in range(10):
                (folder / split / str(digit)).mkdir(parents=True)
        for i in track(range(SCANS), 'digits'):
            image = scans.images[i] * (255 / 16)  # scans have the levels 0 to 16
            image = cv2.resize(image, (args.size, args.size))
            image += rng.normal(0, args.noise, image.shape)
            split = 'train' if i < args.train else 'val'
            path = folder / split / str(scans.target[i]) / f'{i:04}.png'
            if not cv2.imwrite(str(path), image.round().clip(0, 255).astype(np.uint8)):
                raise OSError(f'cannot write {path}')

    make_folder(args.out, dict(converter='digits', version=1, **settings), fill)
