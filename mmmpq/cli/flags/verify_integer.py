"""Recompute every quantized layer with integers and compare with the fake-quantized."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import add_cfg_options

EXAMPLE = """examples:
  mmmpq verify-integer configs/bpnas/resnet_digits_finetune.py \\
      work_dirs/resnet_digits_finetune/epoch_20.pth
  mmmpq verify-integer CONFIG CHECKPOINT --batches 8 --json integers.json

Integer weights times integer inputs, summed exactly, rescaled once. Each layer gets the
input that it has in the fake-quantized net. Status 1 if an input exists that makes a
32-bit accumulator of some layer overflow, or if a layer deviates by more than
--tolerance."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a quantized net')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='its checkpoint')
    parser.add_argument(
        '--batches',
        type=int,
        default=2,
        metavar='N',
        help='batches of the test set, else of the val set (default: %(default)s)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        metavar='SHARE',
        help='largest deviation, as a share of the largest output of the layer '
        '(default: %(default)s)',
    )
    parser.add_argument('--json', metavar='FILE', help='write the numbers there too')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error(f'--batches: found {args.batches}; accepted are ints from 1')
    return args
