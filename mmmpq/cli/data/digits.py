"""Makes the digits classification set: scikit-learn's 1,797 scans, with noise.

The 8 px scans are enlarged to 16 px and noise is added, drawn once from the seed, so
that the bit-widths of a small network show in its accuracy. The split is by scan and
in scikit-learn's order, the first for training and the rest for validation, without
shuffling: the order keeps the scans of a writer together, and shuffling would put
every writer into both parts.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from mmmpq.cli.flags.data.digits import SCANS, parse_args
from mmmpq.cli.data.new_folder import make_folder
from rich.progress import track
from sklearn.datasets import load_digits





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

