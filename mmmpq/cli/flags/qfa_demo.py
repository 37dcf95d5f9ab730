"""Train once, then take any net: an elastic MobileNetV3 on digits, three budgets."""

import argparse

from mmmpq.cli.flags.demo import add_arguments

BUDGETS = ('36 MBOPs', '42 MBOPs', '55 MBOPs')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Trains a small supernet, elastic in architecture, resolution and '
        f'bits, on digits and searches it for the best nets of {", ".join(BUDGETS)}. '
        'Minutes on two cores.',
        epilog='example: mmmpq qfa-demo --work-dir work_dirs/qfa_demo',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, 'qfa_demo', 'digits')
    parser.add_argument(
        '--samples',
        default='400',
        metavar='N',
        help='subnets to measure (default: %(default)s)',
    )
    parser.add_argument(
        '--search-options',
        nargs='+',
        default=[],
        metavar='ARG',
        help='more arguments of mmmpq qfa-search, without their leading dashes: '
        'generations=5',
    )
    return parser.parse_args()
