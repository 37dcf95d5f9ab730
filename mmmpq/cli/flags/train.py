"""Train, search or fine-tune: run the training loop of a config."""

import argparse

from mmmpq.cli.flags.common import add_common_arguments


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train, search or fine-tune with a config of MMDetection, '
        'MMPretrain or mmmpq.',
        epilog='examples: mmmpq train configs/bpnas/resnet_digits.py --seed 1\n'
        '          mmmpq train CONFIG --resume      (go on from the last checkpoint)'
        '\n          tools/dist_train.sh CONFIG 2        (two processes)',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config file')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the last one in the work '
        'directory if none is named',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--seed', type=int, help='random seed (default: randomness.seed of the config)'
    )
    return parser.parse_args(argv)
