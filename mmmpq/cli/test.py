"""Test a checkpoint: run the test loop of a config."""

import argparse
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.fileio import dump

from mmmpq.cli.flags.test import parse_args
from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.engine.launch import (
    build_runner,
    load_config,
)
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.user_config import scope_of
from mmmpq.visualization.progress import terminal


def show_results(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the toolbox's VisualizationHook."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show: default_hooks.visualization is not in the config')
    if scope_of(cfg) == 'mmdet':
        hook.update(draw=True, test_out_dir=args.show_dir)
    elif scope_of(cfg) == 'mmseg':
        hook.update(draw=True, interval=1)
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    else:
        hook.update(enable=True, interval=1, out_dir=args.show_dir)
    hook.update(show=args.show, wait_time=args.wait_time)


def augment(cfg: Config) -> None:
    """Wrap model and pipeline for test-time augmentation, as the toolboxes do."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        pack = deepcopy(dataset.pipeline[-1])
        if scope_of(cfg) == 'mmdet':
            meta = 'img_id img_path ori_shape img_shape scale_factor'
            pack.meta_keys = (*meta.split(), 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        flip = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*dataset.pipeline[:-1], flip]
    if 'tta_model' not in cfg:
        if scope_of(cfg) == 'mmdet':
            nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
            cfg.tta_model = dict(type='mmdet.DetTTAModel', tta_cfg=nms)
        elif scope_of(cfg) == 'mmseg':
            cfg.tta_model = dict(type='mmseg.SegTTAModel')
        else:
            cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_file(args.checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    replaced = check_place(args.out, '--out') if args.out else ''
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        show_results(cfg, args)
    scope = scope_of(cfg)
    if args.tta:
        augment(cfg)
    runner = build_runner(cfg)
    runner.register_hook(WholeCheckpointHook())
    if args.out and args.out_item == 'pred':
        metric = DumpResults
        if scope == 'mmdet':
            from mmdet.evaluation import DumpDetResults as metric
        runner.test_evaluator.metrics.append(metric(out_file_path=args.out))
    metrics = runner.test()
    if args.out and is_main_process():
        if args.out_item == 'metrics':
            kind = Path(args.out).suffix[1:]
            atomic_write(args.out, dump(metrics, file_format=kind))
        terminal().print(f'wrote {args.out}{replaced}', soft_wrap=True)
