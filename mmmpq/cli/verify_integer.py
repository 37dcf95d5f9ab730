"""Recompute every quantized layer with integers and compare with the fake-quantized."""

import json
import sys
from collections.abc import Sequence
from itertools import islice

import torch
from mmengine.runner import CheckpointLoader, Runner
from rich.console import Console
from rich.table import Table

from mmmpq.cli.flags.verify_integer import parse_args
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.launch import build_runner, load_config
from mmmpq.export.integer_check import INT32, LayerCheck, checking
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.layers import quantized_layers
from mmmpq.models.loading import load_whole
from mmmpq.visualization.progress import progress_bar, terminal


@torch.no_grad()
def check(runner: Runner, batches: int, console: Console) -> list[LayerCheck]:
    """The layers of the runner's model, on batches of its test or val set."""
    loader = runner._test_dataloader or runner._val_dataloader
    if loader is None:
        raise ValueError('config: found neither test_dataloader nor val_dataloader')
    loader = runner.build_dataloader(loader)
    model = unwrapped(runner)
    path = runner._load_from
    load_whole(model, CheckpointLoader.load_checkpoint(path, 'cpu'), path)
    model.eval()
    count = min(batches, len(loader))
    bar = progress_bar(console, 'batches', count)
    with checking(model) as checks, bar as step:
        for done, batch in enumerate(islice(loader, count), 1):
            model.test_step(batch)
            step(done)
    return list(checks.values())


def show(checks: Sequence[LayerCheck], others: Sequence[str], console: Console) -> None:
    """A line per layer, and the extremes."""
    table = Table('layer', 'W', 'A', 'calls', 'deviation', 'of the largest output')
    table.add_column('accumulator')
    table.add_column('bits')
    table.add_column('at most')
    for column in table.columns[1:]:
        column.justify = 'right'
    for c in checks:
        values = f'{c.deviation:.1e}', f'{c.share:.1e}', f'{c.lowest} … {c.highest}'
        numbers = (*values, str(c.seen_bits)) if c.calls else ('', '', 'not called', '')
        table.add_row(
            c.name, str(c.w_bits), str(c.a_bits), str(c.calls), *numbers, str(c.bits)
        )
    console.print(table)
    called = [c for c in checks if c.calls]
    if called:
        worst = max(called, key=lambda c: c.share)
        widest = max(called, key=lambda c: c.bits)
        console.print(
            f'largest deviation: {worst.share:.1e} of the largest output, '
            f'{worst.name}\nwidest accumulator: {widest.seen_bits} bits seen, '
            f'{widest.bits} bits for any input, {widest.name}'
        )
    if others:
        console.print(f'not in integers (float or skipped): {", ".join(others)}')


def faults(checks: Sequence[LayerCheck], tolerance: float) -> list[str]:
    """What is wrong, a line per kind, with the names of the layers."""
    lines = []
    wide = [
        f'{c.name} ({c.bits} bits; {c.seen_bits} on these batches)'
        for c in checks
        if c.overflows
    ]
    if wide:
        lines.append(f'a {INT32}-bit accumulator can overflow: {", ".join(wide)}')
    # A NaN is not within the tolerance.
    off = [f'{c.name} ({c.share:.1e})' for c in checks if not c.share <= tolerance]
    if off:
        lines.append(f'deviation above {tolerance:g}: {", ".join(off)}')
    if not any(c.calls for c in checks):
        lines.append('no quantized layer was called')
    return lines


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    replaced = check_place(args.json, '--json') if args.json else ''
    check_file(args.checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.custom_hooks, cfg.log_level = [], 'ERROR'
    console = terminal(140)
    runner = build_runner(cfg)
    checks = check(runner, args.batches, terminal(stderr=True))
    names = {c.name for c in checks}
    others = [n for n in quantized_layers(unwrapped(runner)) if n not in names]
    show(checks, others, console)
    lines = faults(checks, args.tolerance)
    if args.json:
        result = dict(layers=[c.as_dict() for c in checks], others=others, faults=lines)
        path = atomic_write(args.json, json.dumps(result, indent=2) + '\n')
        console.print(f'wrote {path}{replaced}', soft_wrap=True)
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        sys.exit(1)
