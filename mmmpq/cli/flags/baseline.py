"""Write a policy without a gradient search: uniform, measured, or at random."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.flags.common import add_cfg_options, positive

METHODS = (
    'uniform', 'uniform-all', 'sensitivity', 'fisher', 'hessian', 'greedy', 'random',
)  # fmt: skip

EXAMPLE = """methods:
  uniform      the largest precision that all groups can take at once, with the stem
               and the prediction layers at 8/8
  uniform-all  the same with these at that precision, too
  sensitivity  what one group alone at each candidate costs (--metric), the sum
               minimised under the budgets
  fisher       quantization errors times the gradients of the float net's loss,
               from one pass of the batches, the sum minimised under the budgets
  hessian      quantization errors times the Hessian's mean trace (HAWQ-V2),
               the sum minimised under the budgets
  greedy       bits taken away a group at a time where the loss of the whole net
               rises least for what is saved, measured at every step
  random       random policies that spend the budget; the best of --samples

examples:
  mmmpq baseline configs/bpnas/resnet_digits.py --method sensitivity
  mmmpq baseline configs/bpnas/retinanet_shapes.py --method hessian \\
      --budget W4A4 '1 MB'

CONFIG is one of a search; its load_from names the float checkpoint. Measurements are
kept in DIR: a run that was killed goes on, and other budgets cost seconds."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a search')
    parser.add_argument('--method', choices=METHODS, required=True, help='see below')
    parser.add_argument(
        '--budget',
        nargs='+',
        action='extend',
        metavar='LIMIT',
        help="W3A3, 0.9*W4A4, '30 GBOPs', '12 MB' (default: those of the config's "
        'SearchHook)',
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where policy.json and measurements go (default: '
        'work_dirs/<name of the config>_<method>)',
    )
    parser.add_argument(
        '--batches',
        type=positive,
        default=4,
        metavar='N',
        help='batches that are measured on (default: %(default)s)',
    )
    parser.add_argument(
        '--metric',
        choices=('loss', 'output'),
        default='loss',
        help='of sensitivity: increase of the loss, or distance of the raw outputs '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--vectors',
        type=positive,
        default=200,
        metavar='N',
        help='of hessian: most random vectors (default: %(default)s)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=0.1,
        metavar='SHARE',
        help='of hessian: relative standard error to stop at (default: %(default)s)',
    )
    parser.add_argument(
        '--samples',
        type=positive,
        default=1,
        metavar='N',
        help='of random: policies, of which the one with the least loss on '
        'batches of held_out is kept (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, help='(default: randomness.seed of the config, else 0)'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_{args.method}'
    return args
