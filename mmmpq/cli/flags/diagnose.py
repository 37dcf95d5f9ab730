"""Where a quantized net leaves the float one, layer by layer, and what to do."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.flags.common import add_cfg_options, positive

EXAMPLE = """examples:
  mmmpq diagnose CONFIG_finetune.py work_dirs/y/epoch_12.pth
  mmmpq diagnose CONFIG_float.py float.pth --policy work_dirs/x_ptq/policy.json

CONFIG is that of a net of fixed precision. The float net that it is held against is
that of its own weights: those of a packed file are rounded and show no error.
Writes OUT/diagnosis.html, a page that needs no other file, diagnosis.json and .png."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='of a quantized net')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of the same net')
    parser.add_argument(
        '--policy',
        metavar='P',
        help='CONFIG and CHECKPOINT are of a float net: quantize it so, and calibrate',
    )
    parser.add_argument(
        '--images',
        type=positive,
        default=16,
        metavar='N',
        help='training images that are looked at (default: %(default)s)',
    )
    parser.add_argument(
        '--rows',
        type=positive,
        default=15,
        metavar='N',
        help='of the table on the screen (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        dest='work_dir',
        metavar='OUT',
        help='folder (default: work_dirs/<name of the config>_diagnosis)',
    )
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_diagnosis'
    return args
