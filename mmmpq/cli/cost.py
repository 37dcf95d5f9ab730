"""Print what a config's model costs: MACs, BOPs and weight bytes per layer."""

import argparse
import json
from pathlib import Path

from mmengine import Config
from rich.console import Console

from mmmpq.costs import Hardware
from mmmpq.costs.bill import cost
from mmmpq.engine.launch import add_cfg_options, add_reference_arguments, search_hooks
from mmmpq.models import build_model
from mmmpq.policy import Precision

EXAMPLE = """example:
  mmmpq cost configs/bpnas/retinanet_r50_coco.py --policy W4A4
  mmmpq cost configs/bpnas/resnet18_imagenet.py \\
      --hardware configs/_base_/hardware/matched_248.json --json

Without --policy, layers that are to be searched show their largest candidate.
Float layers have 32 bits."""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of mmdet, mmpretrain or mmmpq')
    parser.add_argument(
        '--policy', help='a uniform precision such as W4A4, or a policy.json'
    )
    parser.add_argument(
        '--hardware', help='hardware profile (JSON) that restricts the candidates'
    )
    add_reference_arguments(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def search_budget(cfg):
    budgets = (hook.get('budgets') for hook in search_hooks(cfg))
    return next((each[0] for each in budgets if each), {})


def main(argv=None):
    args = parse_args(argv)
    hardware = Hardware.load(args.hardware) if args.hardware else None
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.policy and not Path(args.policy).suffix:
        Precision.parse(args.policy, '--policy')
    model = build_model(cfg, args.policy)
    budget = search_budget(cfg)
    bill = cost(
        model,
        args.input_shape or budget.get('input_shape'),
        args.proposals or budget.get('proposals'),
        hardware,
    )
    if args.json:
        print(json.dumps(bill.to_dict(), indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(bill.table(args.config))
