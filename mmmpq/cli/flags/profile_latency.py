"""Measure a model's layers, or whole ONNX files, in a real runtime."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import (
    RUNTIMES,
    add_cfg_options,
    add_reference_arguments,
)

EXAMPLE = """examples:
  mmmpq profile-latency configs/bpnas/resnet_digits.py --threads 1
  mmmpq profile-latency configs/bpnas/retinanet_shapes.py --out work_dirs/ort.json
  mmmpq profile-latency configs/bpnas/retinanet_shapes.py --runtime openvino
  mmmpq profile-latency configs/bpnas/resnet_digits.py \\
      --end-to-end float.onnx int8.onnx found.onnx

The first three write a table for dict(type='Latency', table=FILE, limit='2 ms'), with
the time of each distinct layer in float and in 8 bits, and of each two in a row. The
runtimes' CPU kernels know no other widths: lower ones take the time of 8 bits.
--end-to-end lets whole files take
turns on one image, and shows which of their operators run on integers."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a model')
    parser.add_argument(
        '--runtime',
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help='what executes the layers, on the CPU (default: %(default)s)',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        metavar='N',
        help='threads within an operator (default: %(default)s)',
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=50,
        metavar='N',
        help='times that each is measured; the median counts (default: %(default)s)',
    )
    parser.add_argument(
        '--warmup',
        type=int,
        default=10,
        metavar='N',
        help='times that each runs before (default: %(default)s)',
    )
    parser.add_argument(
        '--target',
        choices=RUNTIMES,
        help='measure layers as in files of mmmpq export with that --target, where '
        'each hands on integers; else one does that a quantized layer alone reads',
    )
    add_reference_arguments(parser)
    parser.add_argument(
        '--end-to-end',
        nargs='+',
        metavar='MODEL.onnx',
        help='measure whole files of mmmpq export instead, at the input shape of '
        'their export unless --input-shape is given',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='where the numbers go (default: latency.json; of --end-to-end: nowhere)',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.target not in (None, args.runtime):
        parser.error(
            f'--target: found {args.target}; accepted with --runtime {args.runtime} is '
            f'{args.runtime}'
        )
    for name, least in (('threads', 1), ('repeats', 2), ('warmup', 0)):
        if getattr(args, name) < least:
            parser.error(
                f'--{name}: found {getattr(args, name)}; accepted are ints from {least}'
            )
    return args
