"""Test an exported ONNX file in a runtime and with the evaluator of a config."""

import contextlib
import io
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict

from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.backends import cudnn, mkldnn

from mmmpq.cli.flags.test_onnx import parse_args
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.engine.launch import build_runner, load_config
from mmmpq.export.onnx.agreement import Predictions, agreement, recording
from mmmpq.export.onnx.levels import needs_vnni
from mmmpq.export.onnx.model import OnnxNetwork, sums_are_cut, use_onnx
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.layers import quantized_layers
from mmmpq.policy import Precision
from mmmpq.visualization.progress import progress_bar, terminal


def run_test(runner: Runner, title: str) -> tuple[dict[str, float], Predictions]:
    """Metrics and predictions of one run over the config's test set."""
    total, done = len(runner.test_dataloader.dataset), 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        move(done)

    with (
        contextlib.redirect_stdout(io.StringIO()),  # of pycocotools
        progress_bar(terminal(stderr=True), title, total) as move,
        recording(unwrapped(runner), step) as predictions,
    ):
        metrics = runner.test()
    return {k: float(v) for k, v in metrics.items()}, predictions


def check_model(model: nn.Module, network: OnnxNetwork, checkpoint: str | None) -> None:
    """Raises ValueError if file, config and checkpoint are not of the same net."""
    layers = quantized_layers(model)
    policy = network.about['policy']
    differ = [
        name
        for name in sorted({*layers, *policy})
        if list(getattr(layers.get(name), 'precision', ())) != policy.get(name, [])
    ]
    if layers and differ:
        raise ValueError(
            'MODEL.onnx: its layers or their precisions differ from those of the '
            f'config in {len(differ)} places, such as {", ".join(differ[:3])}; give '
            'the policy it was exported with: --cfg-options model.quant.policy=FILE'
        )
    if hasattr(model, 'roi_head') and checkpoint is None:
        raise ValueError(
            '--checkpoint: found none; a two-stage detector takes its RoI head from '
            'it, for MODEL.onnx ends at the outputs of the RPN'
        )


def cut_layers(path: str, network: OnnxNetwork) -> list[str]:
    """Layers whose integer sums ONNX Runtime may cut on this machine."""
    from mmmpq.export.latency.fused import integer_layers

    if not sums_are_cut():
        return []
    policy = network.about['policy']
    return [
        name
        for name, kind in sorted(integer_layers(path).items())
        if kind == 'int8' and needs_vnni(Precision(*policy[name]))
    ]


@contextlib.contextmanager
def other_sums() -> Iterator[None]:
    """Within it, PyTorch adds up convolutions in another order."""
    before = mkldnn.set_flags(False)
    try:
        with cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.set_flags(*before[:1])


def limits(model: nn.Module) -> dict[str, float]:
    """Where the model's lists of detections end, for :func:`agreement`."""
    cfg = getattr(model, 'test_cfg', None) or {}
    cfg = cfg.get('rcnn') or cfg
    return dict(
        floor=cfg.get('score_thr') or 0.0, most=cfg.get('max_per_img') or sys.maxsize
    )


def main() -> None:
    args = parse_args()
    cfg: Config = load_config(args)
    replaced = check_place(args.out, '--out') if args.out else ''
    network = OnnxNetwork(args.model, args.threads, args.runtime)
    if args.checkpoint:
        check_file(args.checkpoint, '--checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.log_level = 'ERROR'
    runner = build_runner(cfg)
    model = unwrapped(runner)
    check_model(model, network, args.checkpoint)
    console = terminal()
    cut = cut_layers(args.model, network) if args.runtime == 'onnxruntime' else []
    if cut:
        console.print(
            f'this processor has no VNNI: ONNX Runtime may cut the integer sums of '
            f'{len(cut)} layers at W8A8, such as {cut[0]}; a file of mmmpq export '
            'without --vnni is exact here',
            style='yellow',
            soft_wrap=True,
        )
    runs = {}
    if args.checkpoint:
        runner.register_hook(WholeCheckpointHook('--checkpoint'))
        runs['PyTorch'] = run_test(runner, 'PyTorch')
    if args.yardstick:
        with other_sums():
            runs['PyTorch, other sums'] = run_test(runner, 'PyTorch, other sums')
    use_onnx(model, network)
    runs[network.runtime] = run_test(runner, network.runtime)
    figures = {
        name: {**metrics, 'ms_per_image': statistics.median(predictions.milliseconds)}
        for name, (metrics, predictions) in runs.items()
    }
    first, *others = runs
    ends = limits(model)
    agreements = {
        name: asdict(agreement(runs[first][1], runs[name][1], **ends))
        for name in others
    }
    show(figures, agreements, console)
    if args.out:
        written = dict(figures=figures, agreement=agreements)
        path = atomic_write(args.out, json.dumps(written, indent=2) + '\n')
        console.print(f'wrote {path}{replaced}', soft_wrap=True)


def show(
    figures: dict[str, dict[str, float]],
    agreements: dict[str, dict[str, float]],
    console: Console,
) -> None:
    """One row for each metric, then how far each run agrees with PyTorch's."""
    table = Table('', *figures)
    for column in table.columns[1:]:
        column.justify = 'right'
    for key in next(iter(figures.values())):
        title = 'ms per image (median)' if key == 'ms_per_image' else key
        table.add_row(title, *(f'{row.get(key, 0):.4g}' for row in figures.values()))
    console.print(table)
    for name, result in agreements.items():
        share = 100 * result['equal'] / result['images']
        of = f'{result["near"]} of {result["scores"]}'
        if result['pixels']:
            scores = f'the same class in {of} pixels'
        else:
            largest = f'largest difference {result["largest"]:.2g}'
            scores = f'scores within 0.01 in {of}, {largest}'
        console.print(
            f'{name} against PyTorch: equal predictions in {result["equal"]} of '
            f'{result["images"]} images ({share:.2f} %), {scores}',
            soft_wrap=True,
        )
