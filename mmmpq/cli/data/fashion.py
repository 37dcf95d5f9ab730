"""Unpacks Fashion-MNIST: 60,000 + 10,000 photos of clothes, 28 px, 10 classes.

The four idx files are those of the Debian package dataset-fashion-mnist (MIT licence;
Fashion-MNIST, 2017, arXiv 1708.07747).
"""

import argparse
import gzip
import tempfile
from pathlib import Path

from mmmpq.cli.data.debian import add_source, unpack
from mmmpq.cli.data.new_folder import make_folder

PACKAGES = ('dataset-fashion-mnist',)
FILES = tuple(
    f'{split}-{kind}-ubyte'
    for split in ('train', 't10k')
    for kind in ('images-idx3', 'labels-idx1')
)
EPILOG = """examples
  mmmpq data fashion                                (fetches 31 MB)
  mmmpq data fashion --source dataset-fashion-mnist_0.0_all.deb
  mmmpq data fashion --source FOLDER                (with the four .gz files)
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            files = unpack(PACKAGES, args.source, Path(temporary))
            for name in FILES:
                packed = next(iter(sorted(files.rglob(f'{name}.gz'))), None)
                if packed is None:
                    raise FileNotFoundError(
                        f'--source {args.source}: found no {name}.gz in it; needed are '
                        f'{", ".join(f"{each}.gz" for each in FILES)}'
                    )
                (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))

    make_folder(args.out, dict(converter='fashion', version=1), fill)
