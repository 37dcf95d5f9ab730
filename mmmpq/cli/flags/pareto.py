"""Policies for many budgets from one finished search, without searching again."""

import argparse
from pathlib import Path

from mmmpq.cli.flags.common import HELP, above_zero, add_cfg_options

EPILOG = f"""{HELP}
examples
  mmmpq pareto work_dirs/resnet_digits --budgets W2A2 W3A3 W4A4 '20 MBOPs'
  mmmpq pareto work_dirs/resnet_digits --budgets W2A2 W3A3 W4A4 --evaluate
  mmmpq pareto work_dirs/resnet_digits --budgets W2A2 W3A3 W4A4 W8A8 --max-drop 1
  mmmpq pareto work_dirs/resnet_digits --budgets '3 ms' '2 ms' --table latency.json

writes  OUT/policy_<budget>.json, OUT/pareto.json, OUT/pareto.png

A policy is fine-tuned by the twin of its search:
  mmmpq train configs/bpnas/resnet_digits_finetune.py --cfg-options \\
      model.quant.policy=OUT/policy_W3A3.json load_from=OUT/searched_W3A3.pth"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('search_dir', type=Path, help='work_dir of a finished search')
    parser.add_argument('--budgets', nargs='+', required=True, metavar='BUDGET')
    parser.add_argument(
        '--type',
        help="cost of uniform budgets (default: that of the search's first, else BOPs)",
    )
    parser.add_argument('--table', help='latency table (JSON) of budgets on Latency')
    parser.add_argument(
        '--config', type=Path, help='config of the search (default: the one in its dir)'
    )
    parser.add_argument(
        '--checkpoint',
        help='checkpoint of the supernet (default: the last in SEARCH_DIR; the '
        'probabilities in search_history.jsonl if there is none)',
    )
    parser.add_argument(
        '--spend',
        type=int,
        default=0,
        metavar='N',
        help='spend what a policy leaves of its budget where it helps the loss on N '
        'training batches most, as a search does (default: 0, leave it)',
    )
    parser.add_argument(
        '--evaluate',
        nargs='?',
        type=int,
        const=0,
        metavar='N',
        help="evaluate each policy with the supernet's weights on the first N test "
        'images (default: all)',
    )
    parser.add_argument(
        '--calibration',
        type=int,
        default=10,
        metavar='N',
        help='training batches that BatchNorm is re-estimated on (default: 10)',
    )
    parser.add_argument(
        '--max-drop',
        type=above_zero,
        metavar='POINTS',
        help='evaluate, and name the cheapest policy whose metric is at most so many '
        'points below the float net (a mAP of .01 is one point). Both are measured as '
        "the supernet has them, by its weights and --calibration's BatchNorm: nothing "
        'is fine-tuned',
    )
    parser.add_argument(
        '--metric',
        help='metric to plot, and of --max-drop (default: mIoU, or the first that '
        'the test reports)',
    )
    parser.add_argument(
        '--weights',
        action='store_true',
        help='write searched_<budget>.pth too, to fine-tune each policy from',
    )
    parser.add_argument(
        '--out', type=Path, help='folder for results (default: SEARCH_DIR/pareto)'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.max_drop is not None and args.evaluate is None:
        args.evaluate = 0
    for name, least in (('evaluate', 0), ('calibration', 1), ('spend', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'--{name} {value}: at least {max(least, 1)}')
    return args
