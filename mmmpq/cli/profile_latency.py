"""Measure a model's layers, or whole ONNX files, in a real runtime."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from rich.console import Console

from mmmpq.cli.cost import reference
from mmmpq.cli.flags.profile_latency import parse_args
from mmmpq.costs import Latency, LayerProfile, profile, total_cost
from mmmpq.costs.feeds import Feed, feeds
from mmmpq.export.extras import deploy_extra
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.models import build_model
from mmmpq.units import human
from mmmpq.user_config import read_config
from mmmpq.visualization.latency import file_table, layer_table, row_table
from mmmpq.visualization.progress import progress_bar, terminal


def profile_layers(cfg: Config, args: argparse.Namespace, console: Console) -> None:
    """Measures each distinct layer once, and each two that stand in a row; writes and
    shows the table."""
    from mmmpq.export.latency.bench import time_layer, time_row
    from mmmpq.export.latency.graphs import works_of
    from mmmpq.export.latency.runtimes import session_of
    from mmmpq.export.latency.table import save_table

    model = build_model(cfg)
    shapes = []  # of the padded image, the one that worked last
    model.register_forward_pre_hook(lambda _, x: shapes.append(tuple(x[0].shape[1:])))
    profiles = profile(model, *reference(cfg, args))
    profiles = [layer for layer in profiles if layer.calls]
    shape = shapes[-1]
    handed = feeds(model, *reference(cfg, args))
    in_float = set() if args.target else left_in_float(cfg, shape, args, console)
    opened = in_float
    if not args.target:  # a layer hands on integers to a quantized one alone
        opened = in_float | {feed.first for feed in handed}
    modules = dict(model.named_modules())
    names: dict[Any, list[str]] = {}
    works: dict[tuple, Any] = {}
    inputs: Counter = Counter()
    for layer in profiles:
        for work in works_of(layer, modules[layer.name], layer.name not in opened):
            names.setdefault(work, []).append(layer.name)
            works[layer.name, work.input_size] = work
            inputs[work] += layer.shape['input_sizes'][work.input_size]

    def works_in_a_row(feed: Feed) -> tuple:
        ends = (feed.first, feed.first_size), (feed.second, feed.second_size)
        return tuple(works[end] for end in ends)

    in_a_row: dict[tuple, list[str]] = {}
    for feed in handed:
        if feed.first not in in_float:
            of = in_a_row.setdefault(works_in_a_row(feed), [])
            of.append(f'{feed.first} → {feed.second}')
    how = args.threads, args.repeats, args.warmup, session_of(args.runtime)
    timed, rows = {}, {}
    count = len(names) + len(in_a_row)
    with progress_bar(terminal(stderr=True), 'layers, and two in a row', count) as bar:
        for work, of in names.items():
            bar(len(timed), note=of[0])
            timed[work] = time_layer(work, *how)
        for row, of in in_a_row.items():
            bar(len(timed) + len(rows), note=of[0])
            rows[row] = time_row(*row, *how)
        bar(count)
    path = save_table(
        args.out or 'latency.json',
        timed,
        inputs,
        [
            (*row, feed, None if feed.first in in_float else rows[row])
            for feed, row in zip(handed, map(works_in_a_row, handed), strict=True)
        ],
        args.runtime,
        threads=args.threads,
        repeats=args.repeats,
        input_shape=shape,
        target=args.target,
    )
    console.print(layer_table((work, of, timed[work]) for work, of in names.items()))
    measured = [(in_a_row[row], times) for row, times in rows.items() if times]
    if measured:
        console.print(row_table(measured))
    missing = [n for work, of in names.items() if not timed[work] for n in of]
    if missing:
        console.print(
            f'ONNX has no operator for {", ".join(missing)}: a budget needs entries '
            'for them that you have measured elsewhere'
        )
    else:
        show_sums(Latency(path), profiles, handed, console)


def left_in_float(
    cfg: Config, shape: tuple[int, ...], args: argparse.Namespace, console: Console
) -> set[str]:
    """Layers that the runtime leaves in float in the exported net at 8 bits."""
    from mmmpq.export.latency.fused import float_layers

    try:
        return float_layers(build_model(cfg, 'W8A8'), shape, args.runtime)
    except ValueError as error:
        console.print(
            f'The net at 8 bits cannot be exported ({error}): all of its layers are '
            'taken to hand on integers'
        )
        return set()


def show_sums(
    latency: Latency,
    profiles: Sequence[LayerProfile],
    handed: Sequence[Feed],
    console: Console,
) -> None:
    """Of the whole net, as a budget adds it up."""
    from mmmpq.export.latency.bench import INTEGER
    from mmmpq.export.latency.graphs import QUANTIZABLE

    low = {p.name: INTEGER for p in profiles if p.type in QUANTIZABLE}
    base, low = (total_cost(latency, profiles, of, handed) for of in ({}, low))
    console.print(
        f'sum over the layers: float {human(base, "us")}, 8 bits {human(low, "us")} '
        f'({base / low:.2f}x)'
    )


def profile_files(args: argparse.Namespace, console: Console) -> None:
    """Lets whole files take turns; shows, and writes if asked, their times."""
    from mmmpq.export.latency.bench import race
    from mmmpq.export.latency.runtimes import session_of
    from mmmpq.export.latency.table import machine

    for path in args.end_to_end:
        check_file(path, '--end-to-end')
    shape = args.input_shape
    session = session_of(args.runtime)
    sessions = [session(path, args.threads, shape) for path in args.end_to_end]
    rounds = args.warmup + args.repeats
    with progress_bar(terminal(stderr=True), 'rounds', rounds) as bar:
        times = race(sessions, args.repeats, args.warmup, bar)
    console.print(file_table(sessions, times))
    if args.out:
        data = dict(
            **machine(args.runtime),
            threads=args.threads,
            repeats=args.repeats,
            files=[
                dict(
                    file=s.name,
                    input_shape=s.shape,
                    us=median,
                    quartiles=[low, high],
                    operators=s.ops,
                )
                for s, (low, median, high) in zip(sessions, times, strict=True)
            ],
        )
        atomic_write(args.out, json.dumps(data, indent=2) + '\n')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for package in dict.fromkeys(('onnx', 'onnxruntime', args.runtime)):
        deploy_extra(package)
    out = args.out or (None if args.end_to_end else 'latency.json')
    replaced = check_place(out, '--out') if out else ''
    cfg = read_config(args.config, args.cfg_options)
    console = terminal(140)
    if args.end_to_end:
        profile_files(args, console)
    else:
        profile_layers(cfg, args, console)
    if out:
        console.print(f'wrote {out}{replaced}', soft_wrap=True)
