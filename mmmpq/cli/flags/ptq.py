"""Mixed precision without training: from a float net to a net that fits, in minutes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.flags.common import (
    above_zero,
    add_cfg_options,
    add_input_shape,
    positive,
)

ROUNDINGS = ('learned', 'nearest')
SCORES = ('measured', 'fisher')
EXAMPLE = """examples:
  mmmpq ptq configs/float/resnet_digits_float.py epoch_20.pth --budget W4A8 '20 KB'
  mmmpq ptq CONFIG CHECKPOINT --policy W8A8 --onnx
  mmmpq ptq CONFIG CHECKPOINT --budget W8A8 --max-drop 0.5

CONFIG is that of the float net, or of a search on it, whose candidates and quantizers
are then taken. Folds BatchNorms, calibrates ranges, scores the candidates, chooses,
rounds weights and corrects biases layer by layer, tests the net, packs it. The same
command goes on where it was killed."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='of the float net')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of the float net')
    parser.add_argument(
        '--budget',
        nargs='+',
        action='extend',
        metavar='LIMIT',
        help="W4A8, 0.9*W4A4, '30 GBOPs', '12 MB'; several hold at once (default: "
        "those of the config's SearchHook)",
    )
    parser.add_argument(
        '--policy',
        metavar='P',
        help='policy.json, or W4A8 and the like, in place of a choice under budgets',
    )
    parser.add_argument(
        '--max-drop',
        type=above_zero,
        metavar='POINTS',
        help='the cheapest net inside the budgets whose measured metric is at most so '
        'many points below the float one (a mAP of .01 is one point)',
    )
    parser.add_argument(
        '--metric', help='of --max-drop (default: mIoU, or the first that is reported)'
    )
    parser.add_argument(
        '--points',
        type=positive,
        default=12,
        metavar='N',
        help='of --max-drop: policies to choose from (default: %(default)s)',
    )
    parser.add_argument(
        '--images',
        type=positive,
        default=256,
        metavar='N',
        help='training images that are looked at (default: %(default)s)',
    )
    parser.add_argument(
        '--rounding',
        choices=ROUNDINGS,
        default='learned',
        help='of the weights (default: %(default)s)',
    )
    parser.add_argument(
        '--equalise',
        action='store_true',
        help='first make the ranges of consecutive layers level where that leaves the '
        'float net as it is: between them nothing, ReLU, LeakyReLU, PReLU or pooling',
    )
    parser.add_argument(
        '--scores',
        choices=SCORES,
        help='what candidates are chosen by: measured, each layer alone with its '
        'rounding learned (default for classifiers); fisher, squared gradients '
        '(default for others)',
    )
    parser.add_argument(
        '--no-labels',
        action='store_true',
        help='of --scores fisher: by the distance of the outputs, not by the loss',
    )
    add_input_shape(parser)
    parser.add_argument(
        '--test-images',
        type=positive,
        metavar='N',
        help='test on the first N images (default: all)',
    )
    parser.add_argument(
        '--onnx', action='store_true', help='write an ONNX file as well'
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where everything goes (default: work_dirs/<name of the config>_ptq)',
    )
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_ptq'
    if args.budget and args.policy:
        parser.error("give --budget, such as W4A8 or '12 MB', or --policy, not both")
    if args.max_drop is not None and args.policy:
        parser.error('--max-drop: accepted with --budget; of --policy is no choice')
    return args
