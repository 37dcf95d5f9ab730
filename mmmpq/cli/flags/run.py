"""From a float net to a net that fits: search, fine-tune, test, export and report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.flags.baseline import METHODS
from mmmpq.cli.flags.common import add_cfg_options, positive

RUNGS = ('ptq', 'finetune', 'search')
EXAMPLE = """examples:
  mmmpq run configs/bpnas/resnet_digits.py --budget W4A4 --compare uniform sensitivity
  mmmpq run configs/bpnas/resnet_digits.py --budget W4A4 --rungs ptq finetune search

CONFIG is one of a search; its load_from names the float checkpoint. The schedule of the
fine-tuning is that of CONFIG_finetune.py, where such a file lies beside it, else
CONFIG's own. Rungs of a ladder, each dearer than the one before: ptq trains nothing
(mmmpq ptq), finetune trains the net that ptq chose, search is a search and its
fine-tuning. Everything goes to DIR, each stage once: the same command goes on where it
was killed, and one more --compare or rung adds what it needs."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a search')
    parser.add_argument(
        '--budget',
        nargs='+',
        metavar='LIMIT',
        help="W3A3, 0.9*W4A4, '30 GBOPs', '12 MB'; several hold at once (default: "
        "those of the config's SearchHook)",
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        default=[],
        choices=METHODS,
        metavar='METHOD',
        help=f'fine-tune these policies as well: {", ".join(METHODS)}',
    )
    parser.add_argument(
        '--rungs',
        nargs='+',
        default=['search'],
        choices=RUNGS,
        metavar='RUNG',
        help=f'which of {", ".join(RUNGS)} (default: search)',
    )
    parser.add_argument(
        '--finetune', metavar='CONFIG', help='config of the fine-tuning (see below)'
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where everything goes (default: work_dirs/<name of the config>_run)',
    )
    parser.add_argument('--seed', type=int, help='of search and fine-tuning')
    parser.add_argument(
        '--jobs',
        type=positive,
        default=1,
        metavar='N',
        help='2: the nets to compare with are trained beside the search (default: 1)',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_run'
    return args
