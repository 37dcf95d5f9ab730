"""Test a checkpoint: run the test loop of a config."""

import argparse

from mmmpq.cli.flags.common import add_common_arguments


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Test a checkpoint with a config of MMDetection, MMPretrain or '
        'mmmpq.',
        epilog='example: mmmpq test CONFIG work_dirs/x/epoch_12.pth '
        '--out metrics.json --out-item metrics',
    )
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file or URL')
    add_common_arguments(parser)
    parser.add_argument(
        '--out', metavar='FILE', help='write the predictions to this .pkl file'
    )
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        default='pred',
        help='what --out writes (default: pred; metrics: .json, .yml or .pkl)',
    )
    parser.add_argument('--show', action='store_true', help='show each result')
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the results into this folder'
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        metavar='S',
        help='seconds that --show shows a result (default: 2)',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: tta_model and tta_pipeline of the config, '
        'else a horizontal flip',
    )
    args = parser.parse_args(argv)
    endings = {
        'pred': ('.pkl', '.pickle'),
        'metrics': ('.json', '.yml', '.yaml', '.pkl', '.pickle'),
    }[args.out_item]
    if args.out and not args.out.endswith(endings):
        parser.error(
            f'--out {args.out}: {args.out_item} go to a file ending in '
            f'{" or ".join(endings)}'
        )
    return args
