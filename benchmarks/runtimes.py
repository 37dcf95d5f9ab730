"""How fast our ONNX files are beside float and beside what a runtime's own tool makes.

For every model these files take turns in one process, and medians are of ratios within
a round; with one thread of the process's CPU time, which other programs change least.
Each call follows one of the same file that does not count:

* `float`: the exported net, nothing quantized;
* `ours W8A8`, `ours W4A4` or those of `--policies`: types of 8 bits, as `mmmpq export
  --fold` writes them;
* `... + target`: the same with `--target RUNTIME`;
* `own tool`: ONNX Runtime's static quantization (u8 tensors, s8 weights per channel) or
  NNCF's, of the float file.

Weights are random, the ranges are of two random images.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binom
from step_models import INPUTS, build

from mmmpq import compat
from mmmpq.engine.launch import run
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency.runtimes import session_of
from mmmpq.export.latency.table import machine
from mmmpq.export.onnx import cut
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import sums_are_cut
from mmmpq.export.openvino import read_net
from mmmpq.fileio import atomic_write
from mmmpq.layers import calibrating
from mmmpq.policy import Precision

MODELS = ('retinanet_shapes', 'resnet18', 'mobilenet_v2', 'resnet50', 'retinanet_r50')
PACKAGES = dict(onnxruntime=['onnxruntime'], openvino=['openvino', 'nncf'])
OWN = 'own tool'


@dataclass
class Opened:
    """A file in a runtime: call it for one image; layers that it runs in integers."""

    path: Path
    run: Callable[[], Any]
    integer_layers: int


def write(model: str, policy: str, path: Path, target: str | None) -> None:
    """Exports a model with random weights."""
    size = (3, *INPUTS[model][1][1:])
    torch.manual_seed(0)
    net = build(model, dict(policy=policy, fixed={'*': None})).eval()
    images = torch.from_numpy(np.concatenate(batches(size)))
    with torch.no_grad(), calibrating(net):
        cut.network(net, images)
    fold_batchnorm(net, size)
    options = dict(vnni=not sums_are_cut(), target=target, images=batches(size))
    export_onnx(net, path, size, **options)


def batches(size: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((1, *size), np.float32) for _ in range(2)]


class OnnxRuntime:
    """ONNX Runtime and `onnxruntime.quantization`."""

    def quantize(self, source: Path, out: Path, images: Sequence[np.ndarray]) -> None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Images(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.left = [dict(images=image) for image in images]

            def get_next(self) -> dict | None:
                return self.left.pop() if self.left else None

        ready = source.with_suffix('.ready.onnx')
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            out,
            Images(),
            per_channel=True,
            reduce_range=sums_are_cut(),  # as its manual has it without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


class OpenVINO:
    """OpenVINO and NNCF."""

    def quantize(self, source: Path, out: Path, images: Sequence[np.ndarray]) -> None:
        import nncf
        import openvino

        images = nncf.Dataset(images, lambda x: x)
        net = nncf.quantize(read_net(source), images)
        openvino.save_model(net, out, compress_to_fp16=False)


RUNTIMES = dict(onnxruntime=OnnxRuntime, openvino=OpenVINO)


def open_file(runtime: str, path: Path, size: tuple[int, ...], threads: int) -> Opened:
    session = session_of(runtime)(path, threads, size)
    return Opened(path, session, sum(map(session.ops.get, session.integer_ops)))


def files_of(
    model: str, runtime: str, folder: Path, policies: Sequence[str]
) -> dict[str, Path]:
    """Name -> file, all of them written."""
    size = (3, *INPUTS[model][1][1:])
    files = {'float': folder / f'{model}_float.onnx'}
    if not files['float'].exists():
        write(model, 'W32A32', files['float'], None)
    for policy in policies:
        for target in (None, runtime):
            name = f'ours {policy}' + (' + target' if target else '')
            files[name] = folder / f'{model}_{policy}_{target}.onnx'
            if not files[name].exists():
                write(model, policy, files[name], target)
    ending = 'onnx' if runtime == 'onnxruntime' else 'xml'
    files[OWN] = folder / f'{model}_{runtime}_own.{ending}'
    RUNTIMES[runtime]().quantize(files['float'], files[OWN], batches(size))
    return files


def measure(
    model: str, runtime: str, files: dict[str, Path], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """A record for each file."""
    size = (3, *INPUTS[model][1][1:])
    opened = {n: open_file(runtime, f, size, threads) for n, f in files.items()}
    times: dict[str, list[float]] = {name: [] for name in opened}
    clock = time.process_time if threads == 1 else time.perf_counter
    for i in track(range(rounds + 3), f'{model}, {runtime}', transient=True):
        for name, each in opened.items():
            each.run()  # what the file before has left in the caches goes
            start = clock()
            each.run()
            if i >= 3:
                times[name].append(1e3 * (clock() - start))
    rows = []
    for name, each in opened.items():
        ratios, own, w8a8 = (
            [a / b for a, b in zip(times[base], times[name], strict=True)]
            for base in ('float', OWN, re.sub(r'W\d+A\d+', 'W8A8', name))
        )
        weights = each.path.with_suffix('.bin')
        size = each.path.stat().st_size
        rows.append(
            dict(
                model=model,
                runtime=runtime,
                threads=threads,
                file=name,
                ratio_to_float=round(median(ratios), 3),
                interval=[round(r, 3) for r in interval(ratios)],
                ratio_to_own_tool=round(median(own), 3),
                own_interval=[round(r, 3) for r in interval(own)],
                ratio_to_w8a8=round(median(w8a8), 3),
                w8a8_interval=[round(r, 3) for r in interval(w8a8)],
                ms=round(median(times[name]), 3),
                bytes=size + (weights.stat().st_size if weights.exists() else 0),
                integer_layers=each.integer_layers,
            )
        )
    return rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the median, from the order of the values (binomial)."""
    ordered = sorted(values)
    rank = max(1, int(binom.ppf(0.025, len(values), 0.5)))
    return ordered[rank - 1], ordered[-rank]


def table(rows: list[dict[str, Any]]) -> Table:
    columns = 'of float', 'of own tool', 'of W8A8', 'ms', 'MB'
    shown = Table('model', 'runtime', 'file', *columns)
    for column in shown.columns[3:]:
        column.justify = 'right'
    for row in rows:
        low, high = row['interval']
        plain = row['file'] in ('float', OWN) or 'W8A8' in row['file']
        shown.add_row(
            *(row[key] for key in ('model', 'runtime', 'file')),
            f'{row["ratio_to_float"]:.2f} ({low:.2f} … {high:.2f})',
            f'{row["ratio_to_own_tool"]:.2f}',
            '' if plain else f'{row["ratio_to_w8a8"]:.2f}',
            f'{row["ms"]:.2f}',
            f'{row["bytes"] / 1e6:.1f}',
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', choices=MODELS, default=MODELS)
    parser.add_argument(
        '--runtimes', nargs='+', choices=RUNTIMES, default=['onnxruntime']
    )
    parser.add_argument(
        '--policies',
        nargs='+',
        default=['W4A4'],
        metavar='WxAy',
        help='of our files, beside W8A8 (default: W4A4)',
    )
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=100)
    parser.add_argument('--json', metavar='FILE')
    args = parser.parse_args()
    for runtime in args.runtimes:
        missing = [name for name in PACKAGES[runtime] if find_spec(name) is None]
        if missing:
            parser.error(
                f'--runtimes {runtime}: found no package {missing[0]}; it comes with '
                f'pip install {" ".join(PACKAGES[runtime])}'
            )
    precisions = [Precision.parse(each, '--policies') for each in args.policies]
    policies = list(dict.fromkeys(['W8A8', *map(str, precisions)]))
    compat.prepare()
    torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for runtime in args.runtimes:
                files = files_of(model, runtime, Path(folder), policies)
                rows += measure(model, runtime, files, args.threads, args.rounds)
                if args.json:
                    about = dict(processor=machine()['processor'], rounds=args.rounds)
                    data = [dict(row, **about) for row in rows]
                    atomic_write(args.json, json.dumps(data, indent=1) + '\n')
    Console(width=120).print(table(rows))


if __name__ == '__main__':
    run(main)
