"""The main job end to end on bundled data: float, search, fine-tune, test, export."""

import argparse

from mmmpq.cli.flags.common import add_cfg_options


def add_arguments(parser: argparse.ArgumentParser, name: str, data: str) -> None:
    """Add the flags that all demos share."""
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        default=f'work_dirs/{name}',
        help='where everything goes (default: %(default)s)',
    )
    parser.add_argument(
        '--data',
        metavar='DIR',
        default=f'data/{data}',
        help=f'where the {data} are made (default: %(default)s)',
    )
    add_cfg_options(parser)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Searches, fine-tunes, tests, exports and reports a small '
        'RetinaNet on synthetic shapes, inside the budget W3A3. Minutes on two cores.',
        epilog='example: mmmpq demo --work-dir work_dirs/demo',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, 'demo', 'shapes')
    parser.add_argument(
        '--train-images', type=int, default=1000, metavar='N', help='(default: 1000)'
    )
    parser.add_argument(
        '--val-images', type=int, default=200, metavar='N', help='(default: 200)'
    )
    return parser.parse_args()
