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
from mmmpq.costs import Latency, LayerProfile, profile
from mmmpq.export.onnx.graph import deploy_extra
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.models import build_model
from mmmpq.policy import FLOAT, Precision
from mmmpq.units import human
from mmmpq.user_config import read_config
from mmmpq.visualization.latency import file_table, layer_table
from mmmpq.visualization.progress import progress_bar, terminal


def profile_layers(cfg: Config, args: argparse.Namespace, console: Console) -> None:
    """Measures each distinct layer once; writes and shows the table."""
    from mmmpq.export.latency.bench import time_layer
    from mmmpq.export.latency.graphs import works_of
    from mmmpq.export.latency.table import save_table

    model = build_model(cfg)
    shapes = []  # of the padded image, the one that worked last
    model.register_forward_pre_hook(lambda _, x: shapes.append(tuple(x[0].shape[1:])))
    profiles = profile(model, *reference(cfg, args))
    profiles = [layer for layer in profiles if layer.calls]
    shape = shapes[-1]
    in_float = left_in_float(cfg, shape, console)
    modules = dict(model.named_modules())
    names: dict[Any, list[str]] = {}
    inputs: Counter = Counter()
    for layer in profiles:
        for work in works_of(layer, modules[layer.name], layer.name not in in_float):
            names.setdefault(work, []).append(layer.name)
            inputs[work] += layer.shape['input_sizes'][work.input_size]
    timed = {}
    with progress_bar(terminal(stderr=True), 'distinct layers', len(names)) as bar:
        for work, of in names.items():
            bar(len(timed), note=of[0])
            timed[work] = time_layer(work, args.threads, args.repeats, args.warmup)
        bar(len(timed))
    path = save_table(
        args.out or 'latency.json',
        timed,
        inputs,
        threads=args.threads,
        repeats=args.repeats,
        input_shape=shape,
    )
    rows = [(work, of, timed[work]) for work, of in names.items()]
    console.print(layer_table(rows))
    missing = [n for work, of in names.items() if not timed[work] for n in of]
    if missing:
        console.print(
            f'ONNX has no operator for {", ".join(missing)}: a budget needs entries '
            'for them that you have measured elsewhere'
        )
    else:
        show_sums(Latency(path), profiles, console)


def left_in_float(cfg: Config, shape: tuple[int, ...], console: Console) -> set[str]:
    """Layers that ONNX Runtime leaves in float in the exported net at 8 bits."""
    from mmmpq.export.latency.fused import float_layers

    try:
        return float_layers(build_model(cfg, 'W8A8'), shape)
    except ValueError as error:
        console.print(
            f'The net at 8 bits cannot be exported ({error}): all of its layers are '
            'taken to hand on integers'
        )
        return set()


def show_sums(
    latency: Latency, profiles: Sequence[LayerProfile], console: Console
) -> None:
    """Of the whole net, as a budget adds it up."""
    from mmmpq.export.latency.bench import INTEGER
    from mmmpq.export.latency.graphs import QUANTIZABLE

    def total(precision: Precision) -> float:
        return sum(
            latency(layer, precision if layer.type in QUANTIZABLE else FLOAT)
            for layer in profiles
        )

    base, low = total(FLOAT), total(INTEGER)
    console.print(
        f'sum over the layers: float {human(base, "us")}, 8 bits {human(low, "us")} '
        f'({base / low:.2f}x)'
    )


def profile_files(args: argparse.Namespace, console: Console) -> None:
    """Lets whole files take turns; shows, and writes if asked, their times."""
    from mmmpq.export.latency.bench import Session, race
    from mmmpq.export.latency.table import machine

    for path in args.end_to_end:
        check_file(path, '--end-to-end')
    shape = args.input_shape
    sessions = [Session(path, args.threads, shape) for path in args.end_to_end]
    rounds = args.warmup + args.repeats
    with progress_bar(terminal(stderr=True), 'rounds', rounds) as bar:
        times = race(sessions, args.repeats, args.warmup, bar)
    console.print(file_table(sessions, times))
    if args.out:
        data = dict(
            **machine(),
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
    for package in ('onnx', 'onnxruntime'):
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
