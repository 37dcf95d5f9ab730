"""Test an exported ONNX file in a runtime and with the evaluator of a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.flags.common import RUNTIMES, add_cfg_options

EXAMPLE = """Features and heads are computed by the runtime on the CPU; loading,
preprocessing, decoding, NMS and metrics are those of the config. A two-stage detector
takes its RoI head from FILE.

examples:
  mmmpq test-onnx configs/bpnas/resnet_digits_finetune.py digits.onnx
  mmmpq test-onnx configs/bpnas/retinanet_shapes_finetune.py shapes.onnx \\
      --checkpoint work_dirs/retinanet_shapes_finetune/epoch_5.pth

ms per image are those of network, decoding and NMS, without loading."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of the fixed net')
    parser.add_argument('model', metavar='MODEL.onnx', help='of mmmpq export')
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='what was exported, .pth or packed .safetensors: test it with PyTorch '
        'too, and compare',
    )
    parser.add_argument(
        '--yardstick',
        action='store_true',
        help='with --checkpoint: test PyTorch once more, its sums taken in another '
        'order (without oneDNN and cuDNN), to see how far rounding alone moves the net',
    )
    parser.add_argument(
        '--runtime',
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help='what executes the file, on the CPU (default: %(default)s)',
    )
    parser.add_argument(
        '--threads',
        type=int,
        metavar='N',
        help='of the runtime (default: as many as PyTorch takes)',
    )
    parser.add_argument('--out', metavar='FILE.json', help='write the figures here')
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where logs go (default: work_dirs/<name of the config>_onnx)',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.yardstick and not args.checkpoint:
        parser.error('--yardstick needs --checkpoint')
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_onnx'
    return args
