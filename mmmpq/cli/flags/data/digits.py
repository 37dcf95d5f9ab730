"""Makes the digits classification set: scikit-learn's 1,797 scans, with noise.

The 8 px scans are enlarged to 16 px and noise is added, drawn once from the seed, so
that the bit-widths of a small network show in its accuracy. The split is by scan and
in scikit-learn's order, the first for training and the rest for validation, without
shuffling: the order keeps the scans of a writer together, and shuffling would put
every writer into both parts.
"""

import argparse
from pathlib import Path

SCANS = 1797


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=Path('data/digits'), help='folder')
    parser.add_argument('--train', type=int, default=1000, help='scans to train on')
    parser.add_argument('--size', type=int, default=16, help='height and width, px')
    parser.add_argument(
        '--noise',
        type=float,
        default=56.0,
        help='standard deviation of the noise in grey levels of 255; 0: clean scans',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the noise')
    args = parser.parse_args(argv)
    if not 0 < args.train < SCANS:
        parser.error(f'--train {args.train}: must be from 1 to {SCANS - 1}')
    if args.size < 8:
        parser.error(f'--size {args.size}: must be at least 8')
    if args.noise < 0:
        parser.error(f'--noise {args.noise}: must not be negative')
    return args
