"""Tell per layer whether a target computes it in integers, in float, or not at all."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmmpq.cli.cost import reference
from mmmpq.cli.flags.check import parse_args
from mmmpq.costs import profile, reference_input_shape
from mmmpq.engine.launch import load_config
from mmmpq.export.onnx.check.config import check_net, check_target
from mmmpq.export.onnx.check.file import check_onnx
from mmmpq.export.onnx.check.verdict import Check
from mmmpq.fileio import atomic_write, check_place
from mmmpq.layers import quantized_layers
from mmmpq.models import build_model
from mmmpq.policy import Precision
from mmmpq.visualization.progress import terminal

CONFIGS = '.py', '.json', '.yml', '.yaml'
AS_FLOAT = 'W8A8'  # what a float config is checked as


def check_config(args: argparse.Namespace) -> Check:
    """Of the net that a config builds."""
    if args.policy and not Path(args.policy).suffix:
        Precision.parse(args.policy, '--policy')
    cfg = load_config(args)
    model = build_model(cfg, args.policy)
    if not quantized_layers(model):
        model = build_model(cfg, AS_FLOAT)
    shape, proposals = reference(cfg, args)
    shape = shape or reference_input_shape(model)
    return check_net(model, args.target, profile(model, shape, proposals), shape)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_target(args.target)
    replaced = check_place(args.json, '--json') if args.json else ''
    is_config = '::' in args.config or Path(args.config).suffix in CONFIGS
    check = check_config(args) if is_config else check_onnx(args.config, args.target)
    console = terminal(140)
    console.print(check.table(args.config))
    if args.json:
        path = atomic_write(args.json, json.dumps(check.to_dict(), indent=2) + '\n')
        console.print(f'wrote {path}{replaced}', soft_wrap=True)
    if not check.ok:
        sys.exit(1)
