"""Train, search or fine-tune: run the training loop of a config."""

import argparse
from pathlib import Path

from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.engine.launch import add_common_arguments, build_runner, load_config
from mmmpq.engine.lr_schedule import fit_schedule
from mmmpq.fileio import check_file


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


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError(
                '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, '
                'the batch size that its learning rate was made for'
            )
        cfg.auto_scale_lr.enable = True
    if args.seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': args.seed}
    if args.resume == 'auto':
        # Without a checkpoint it is the start: with load_from, which MMEngine drops.
        cfg.resume = (Path(cfg.work_dir) / 'last_checkpoint').is_file()
        if cfg.resume:
            cfg.load_from = None
    elif args.resume is not None:
        check_file(args.resume, '--resume')
        cfg.resume, cfg.load_from = True, args.resume
    notes = fit_schedule(cfg)
    runner = build_runner(cfg)
    for note in notes:
        runner.logger.info(note)
    runner.register_hook(WholeCheckpointHook('resume'))
    runner.train()
