"""Does a latency table foretell what nets of several precisions take?

A net is exported in float, in 8 bits, with its first or second half or every other
layer in 8 bits, and with random halves. All files take turns in its runtime. What the
table says of them, with and without its pairs, is compared with the medians, scaled
by what the float net takes over the table's sum (additions, pooling, the call).
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmmpq.costs import Latency, profile, total_cost
from mmmpq.costs.feeds import feeds
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency.bench import INTEGER, race
from mmmpq.export.latency.graphs import QUANTIZABLE
from mmmpq.export.latency.runtimes import session_of
from mmmpq.export.latency.table import machine
from mmmpq.export.onnx import cut
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.fileio import atomic_write
from mmmpq.layers import calibrating
from mmmpq.models import build_model
from mmmpq.policy import FLOAT, Policy, Precision
from mmmpq.user_config import read_config

Layers = dict[str, Precision]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='of a float model')
    parser.add_argument('table', help='of mmmpq profile-latency, for that model')
    parser.add_argument('--nets', type=int, default=6, help='random ones (default: 6)')
    parser.add_argument('--repeats', type=int, default=40, help='(default: 40)')
    parser.add_argument('--json', type=Path, help='where the times go')
    return parser.parse_args(argv)


def hybrids(names: list[str], count: int) -> dict[str, Layers]:
    """Which layers have 8 bits; the others are float."""
    half = len(names) // 2
    chosen = {
        'float': [],
        '8 bits': names,
        'first half': names[:half],
        'second half': names[half:],
        'every other': names[::2],
    }
    for seed in range(count):
        draw = random.Random(seed)
        chosen[f'random {seed}'] = [n for n in names if draw.random() < 0.5]
    return {title: dict.fromkeys(of, INTEGER) for title, of in chosen.items()}


def export(cfg, layers: Layers, names: list[str], shape, target, path: Path) -> None:
    """The net with these layers in 8 bits, calibrated on noise, for VNNI."""
    policy = path.with_suffix('.json')
    Policy({n: layers.get(n, FLOAT) for n in names}, {}).save(policy)
    model = build_model(cfg, policy).eval()
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), calibrating(model):
        cut.network(model, images)
    fold_batchnorm(model, shape)
    islands = dict(target=target, images=[images]) if target and layers else {}
    export_onnx(model, path, shape, vnni=True, **islands)


def main(argv=None) -> None:
    args = parse_args(argv)
    cfg = read_config(args.config, {})
    noted = json.loads(Path(args.table).read_text())
    shape, target = noted['input_shape'], noted.get('target')
    runtime = noted['runtime'].split()[0]
    latency = Latency(args.table)
    model = build_model(cfg)
    profiles = [p for p in profile(model, shape) if p.calls]
    handed = feeds(model, shape)
    names = [p.name for p in profiles if p.type in QUANTIZABLE]
    nets = hybrids(names, args.nets)
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for i, layers in enumerate(track(nets.values(), 'exporting')):
            path = Path(folder) / f'{i}.onnx'
            export(cfg, layers, names, shape, target, path)
            sessions.append(session_of(runtime)(path, noted['threads']))
        times = [median for _, median, _ in race(sessions, args.repeats, 5)]
    share = times[0] / total_cost(latency, profiles, {})
    records = [
        dict(
            net=title,
            us=us,
            pairs=share * total_cost(latency, profiles, layers, handed),
            no_pairs=share * total_cost(latency, profiles, layers),
        )
        for (title, layers), us in zip(nets.items(), times, strict=True)
    ]
    table = Table('net', 'ms', 'with pairs', '', 'without', '')
    for row in records:
        cells = [f'{row["us"] / 1e3:.2f}']
        for key in ('pairs', 'no_pairs'):
            cells += [f'{row[key] / 1e3:.2f}', f'{row[key] / row["us"] - 1:+.1%}']
        table.add_row(row['net'], *cells)
    errors = {
        key: sum(abs(r[key] / r['us'] - 1) for r in records[1:]) / (len(records) - 1)
        for key in ('pairs', 'no_pairs')
    }
    console = Console(width=100)
    console.print(table)
    console.print(
        f'mean error: {errors["pairs"]:.1%} with pairs, '
        f'{errors["no_pairs"]:.1%} without'
    )
    if args.json:
        data = dict(machine(runtime), target=target, mean_error=errors, nets=records)
        atomic_write(args.json, json.dumps(data, indent=1) + '\n')


if __name__ == '__main__':
    main()
