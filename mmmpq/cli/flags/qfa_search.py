"""Search the subnets of a trained supernet for the best inside budgets."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import HELP, add_cfg_options, positive

PREDICTORS = ('best', 'mlp', 'linear')  # as subnets.predictor
LOSS = 'loss'  # as engine.subnet_evaluation
EPILOG = f"""{HELP}
examples
  mmmpq qfa-search configs/qfa/resnet_digits.py \\
      work_dirs/qfa/resnet_digits/epoch_20.pth --budget W2A2 W3A3 W4A4
  mmmpq qfa-search configs/qfa/retinanet_shapes.py \\
      work_dirs/qfa/retinanet_shapes/epoch_3.pth --budget W3A3 'W4A4, 150 KB' \\
      --target-budget W3A3 --processes 2

writes  DIR/policy_<budget>.json, DIR/policy.json with --target-budget, a policy for
every point in DIR/policies, DIR/front.json, front.csv, front.png

What was measured is kept in DIR/samples.jsonl and DIR/evaluated.jsonl: a run that was
killed goes on, and other budgets need no new samples."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of the supernet')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='its weights')
    parser.add_argument(
        '--budget', nargs='+', action='extend', default=[], metavar='BUDGET'
    )
    parser.add_argument(
        '--target-budget',
        metavar='BUDGET',
        help='also write the best net inside it to DIR/policy.json',
    )
    parser.add_argument(
        '--objectives',
        nargs='+',
        metavar='COST',
        help='costs that the front is over (default: those of all budgets)',
    )
    parser.add_argument(
        '--type',
        default='BOPs',
        metavar='COST',
        help='cost of uniform budgets (default: %(default)s)',
    )
    parser.add_argument('--table', help='latency table (JSON) of budgets on Latency')
    parser.add_argument(
        '--input-shape',
        nargs=3,
        type=positive,
        metavar=('C', 'H', 'W'),
        help='reference input (default: that of the first validation image)',
    )
    parser.add_argument(
        '--proposals', type=positive, metavar='N', help='reference number of RoIs'
    )
    parser.add_argument(
        '--samples',
        type=positive,
        default=1000,
        metavar='N',
        help='subnets to measure for the predictor (default: %(default)s)',
    )
    parser.add_argument(
        '--batches',
        type=positive,
        default=30,
        metavar='N',
        help='training batches that each subnet is calibrated on '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--val-batches',
        type=positive,
        metavar='N',
        help='measure samples on so many validation batches (default: all)',
    )
    parser.add_argument(
        '--measure',
        choices=('metric', LOSS),
        help="of samples: the config's metric, or the task loss on validation batches, "
        'which is finer where few images are used (default: loss for detectors)',
    )
    parser.add_argument(
        '--metric', help='metric to maximise (default: the first that is reported)'
    )
    parser.add_argument(
        '--predictor',
        choices=PREDICTORS,
        default='best',
        help='(default: that of the higher rank correlation)',
    )
    parser.add_argument(
        '--population', type=positive, default=500, metavar='N', help='(default: 500)'
    )
    parser.add_argument(
        '--generations',
        type=positive,
        default=1000,
        metavar='N',
        help='(default: 1000)',
    )
    parser.add_argument(
        '--rounds',
        type=positive,
        default=1,
        metavar='N',
        help='of predicting and evolving; each after the first learns from what the '
        'one before proposed (default: %(default)s)',
    )
    parser.add_argument(
        '--re-evaluate',
        type=positive,
        default=16,
        metavar='N',
        help='points of the front to measure on the whole validation set '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--processes',
        type=positive,
        default=1,
        metavar='N',
        help='that measure at a time (default: %(default)s)',
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='(default: the work_dir of the config, else work_dirs/<its name>)',
    )
    parser.add_argument(
        '--seed', type=int, help='(default: randomness.seed of the config, else 0)'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.target_budget and args.target_budget not in args.budget:
        args.budget.append(args.target_budget)
    if not args.budget:
        parser.error('--budget: none is given; accepted is a limit such as W3A3')
    return args
