"""Makes the stamps detection set: real cut-outs on real photographs, COCO format.

Cut-outs with alpha (Tux Paint's stamps, GPL-2; cartoons left out) in 7 classes are
pasted at random scale and place, mirrored or not, on random crops of photographs (MATE:
GPL-2+ and CC-BY-SA; Plasma: GPL-2+; Lomiri: CC-BY and CC-BY-SA) that show no object of
a class in front. No cut-out, and no photograph, is in both splits. Boxes and areas are
of the part that is seen. The packages are fetched, or given with --source; what is made
from them has their licences: do not pass it on under others.
"""

import argparse
from pathlib import Path

from mmmpq.cli.data.debian import add_source

PACKAGES = (
    'tuxpaint-stamps-default',
    'mate-backgrounds',
    'plasma-workspace-wallpapers',
    'lomiri-wallpapers-16.04',
)

EPILOG = """examples
  mmmpq data stamps                                   (fetches 317 MB)
  mmmpq data stamps --source FOLDER                   (with the .deb files)
  mmmpq data stamps --size 224 --train 5000 --test 5000 --objects 0 5 --out data/crops
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flags, default, text in (
        (['--train'], 3000, 'training images'),
        (['--test'], 2000, 'test images'),
        (['--size'], 128, 'height and width, px'),
        (['--seed'], 0, 'seed of the split and of everything drawn'),
    ):
        text += ' (default: %(default)s)'
        parser.add_argument(*flags, type=int, default=default, help=text)
    parser.add_argument(
        '--objects',
        type=int,
        nargs=2,
        default=(1, 5),
        metavar=('LEAST', 'MOST'),
        help='tried per image (default: 1 5)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/stamps'),
        help='folder (default: %(default)s)',
    )
    add_source(parser, PACKAGES)
    args = parser.parse_args(argv)
    for name, least, most in (('train', 1, None), ('test', 1, None), ('size', 32, 512)):
        value = getattr(args, name)
        if value < least or (most and value > most):
            wanted = f'from {least} to {most}' if most else f'at least {least}'
            parser.error(f'--{name} {value}: must be {wanted}')
    if not 0 <= args.objects[0] <= args.objects[1] <= 20 or not args.objects[1]:
        found = ' '.join(map(str, args.objects))
        parser.error(f'--objects {found}: must be two rising numbers from 0 to 20')
    return args
