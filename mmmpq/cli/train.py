"""Train, search or fine-tune: run the training loop of a config."""

from pathlib import Path

from mmmpq.cli.flags.train import parse_args
from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.engine.launch import build_runner, load_config
from mmmpq.engine.lr_schedule import fit_schedule
from mmmpq.fileio import check_file


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
