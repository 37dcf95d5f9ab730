"""Flags that several verbs share.

Nothing in this folder imports what takes long: flags are parsed, and ``--help`` is
printed, before any of it.
"""

import argparse
from typing import Any

RUNTIMES = ('onnxruntime', 'openvino')  # that exported files are run in here

HELP = """\
a budget is
  W3A3            the cost of a uniform precision, under the cost of --type
  0.9*W4A4        a share of it
  '1.2 GBOPs'     absolute; the unit says which cost is meant
  WeightBytes:W4A4     with its cost spelled out
  'bit_fusion: 5 ms'   or mJ, on a chip, or on one of your own: 'my_chip.json: 5 ms'
  'W3A3, 20 KB'   several that are to hold at once
"""


class CfgOptions(argparse.Action):
    """MMEngine's ``DictAction``, imported where it has something to do."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *args: Any
    ) -> None:
        from mmengine.config import DictAction

        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                parser.error(f'--cfg-options: found {value!r}; accepted is KEY=VALUE')
        action = DictAction(self.option_strings, self.dest, nargs='+')
        action(parser, namespace, values, *args)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the train.py and test.py of both toolboxes share."""
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where logs and results go (default: the work_dir of the config, '
        'else work_dirs/<name of the config>)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision (on a CPU: bfloat16)',
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started (default: none, one process; '
        'pytorch works without a GPU too)',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the flag that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override settings of the config: train_cfg.max_epochs=3 '
        'key="[a,b]" key="[(a,b),(c,d)]"',
    )


def add_input_shape(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the input that a cost is counted at."""
    parser.add_argument(
        '--input-shape',
        type=int,
        nargs=3,
        metavar=('C', 'H', 'W'),
        help="reference input; default: the search budget's, else 3 224 224 for "
        'classifiers and 3 800 1333 for detectors',
    )


def add_reference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for that input, and for what two-stage detectors propose there."""
    add_input_shape(parser)
    parser.add_argument(
        '--proposals',
        type=int,
        metavar='N',
        help="RoIs per image; default: the search budget's, else the model's test_cfg",
    )


def positive(text: str) -> int:
    """An int of at least 1, as the type of a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'found {text!r}; accepted are ints from 1')
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0, as the type of a flag."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(
            f'found {text!r}; accepted are numbers above 0'
        )
    return value
