"""Unpacks Fashion-MNIST: 60,000 + 10,000 photos of clothes, 28 px, 10 classes."""

import gzip
import tempfile
from pathlib import Path

from mmmpq.cli.data.debian import unpack
from mmmpq.cli.data.new_folder import make_folder
from mmmpq.cli.flags.data.fashion import PACKAGES, parse_args

FILES = tuple(
    f'{split}-{kind}-ubyte'
    for split in ('train', 't10k')
    for kind in ('images-idx3', 'labels-idx1')
)


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
