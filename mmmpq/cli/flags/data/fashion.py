"""Unpacks Fashion-MNIST: 60,000 + 10,000 photos of clothes, 28 px, 10 classes.

The four idx files are those of the Debian package dataset-fashion-mnist (MIT licence;
Fashion-MNIST, 2017, arXiv 1708.07747).
"""

import argparse
from pathlib import Path

from mmmpq.cli.data.debian import add_source

PACKAGES = ('dataset-fashion-mnist',)

EPILOG = """examples
  mmmpq data fashion                                (fetches 31 MB)
  mmmpq data fashion --source dataset-fashion-mnist_0.0_all.deb
  mmmpq data fashion --source FOLDER                (with the four .gz files)
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/fashion'),
        help='folder (default: %(default)s)',
    )
    add_source(parser, PACKAGES)
    return parser.parse_args(argv)
