"""Write a fine-tuned net as a file that is really smaller: packed, or ONNX."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from mmmpq.cli.flags.export import OURS, SUFFIX, parse_args
from mmmpq.costs import BOPs, WeightBytes, profile, total_cost
from mmmpq.costs.profile import reference_input_shape
from mmmpq.engine.batches import first_batches
from mmmpq.engine.launch import load_config
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.onnx.levels import needs_vnni
from mmmpq.export.packed import save_packed
from mmmpq.export.packed.check import check_packed
from mmmpq.export.sizes import rest_bytes, sizes
from mmmpq.fileio import atomic_write, check_file, check_place
from mmmpq.layers import quantized_layers
from mmmpq.models import build_model
from mmmpq.models.islands import trained_target
from mmmpq.models.loading import load_whole
from mmmpq.policy import Policy, some_of
from mmmpq.units import human
from mmmpq.visualization.progress import terminal
from mmmpq.visualization.sizes import size_table

# By how much in percent W8A8 has been faster than W4A4 (benchmarks/runtimes.py)
FASTER = dict(onnxruntime=10, openvino=18)
ENDINGS = (*reversed(SUFFIX.values()), '.pth', '.pt', '.ckpt', '.bin')


def outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The file of each format.

    Raises:
        ValueError: One is CHECKPOINT itself, or --out a folder.
    """
    out = Path(args.out or args.checkpoint)
    if args.out and (args.out.endswith('/') or out.is_dir()):
        raise ValueError(
            f'--out: {args.out} is a folder; accepted is the name of a file in it'
        )
    ending = next((e for e in ENDINGS if out.name.endswith(e)), '')
    out = out.with_name(out.name.removesuffix(ending))
    kinds = [kind for kind in SUFFIX if kind in args.format]
    paths = {kind: out.with_name(out.name + SUFFIX[kind]) for kind in kinds}
    for path in paths.values():
        if path.resolve() == Path(args.checkpoint).resolve():
            raise ValueError(
                f'--out: {path} is CHECKPOINT itself; accepted is another file'
            )
    return paths


@contextmanager
def beside(paths: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Places to write to; what is there moves to ``paths`` once all is well."""
    parent = next(iter(paths.values())).parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix='.export.') as folder:
        new = {kind: Path(folder) / path.name for kind, path in paths.items()}
        yield new
        for kind, path in paths.items():
            new[kind].replace(path)


def build(cfg: Config) -> nn.Module:
    """The config's model, whose precisions must be fixed.

    Raises:
        ValueError: It is not quantized, or a supernet.
    """
    net = build_model(cfg).eval()
    layers = quantized_layers(net)
    if not layers or not all(hasattr(layer, 'precision') for layer in layers.values()):
        found = 'candidates of a search' if layers else 'no quantized layer'
        raise ValueError(
            f'CONFIG: found {found}; accepted is the config of a fine-tuning, with '
            "quant=dict(policy='policy.json')"
        )
    return net


def policy_meta(cfg: Config) -> dict[str, Any]:
    """What the config's policy says of itself; {} for a uniform precision."""
    policy = (cfg.model.get('quant') or {}).get('policy')
    if isinstance(policy, dict):
        return Policy.from_dict(policy).meta
    if isinstance(policy, str) and Path(policy).is_file():
        return Policy.load(policy).meta
    return {}


def costs_of(model: nn.Module, shape: Sequence[int]) -> dict[str, dict[str, float]]:
    """BOPs and weight bytes of the net, and of the same net as float."""
    profiles = profile(model, shape)
    layers = {n: layer.precision for n, layer in quantized_layers(model).items()}
    return {
        name: dict(
            bops=total_cost(BOPs(), profiles, precisions),
            weight_bytes=total_cost(WeightBytes(), profiles, precisions),
        )
        for name, precisions in (('float', {}), ('searched', layers))
    }


def preprocessed(model: nn.Module, cfg: Config, count: int) -> list[np.ndarray]:
    """Images of the first batches that the config trains on."""
    batches = first_batches(cfg, count)
    return [model.data_preprocessor(b, False)['inputs'].cpu().numpy() for b in batches]


def onnx_notes(
    model: nn.Module, args: argparse.Namespace, onnx: dict[str, Any]
) -> Iterator[str]:
    """What is to be known of an ONNX file: how fast, where exact, what is rounded."""
    if args.containers == 'auto':
        yield (
            'types of 4 bits make the smallest file; no runtime computes them in '
            'integers, and it is slower than float. --containers 8bit is fast'
        )
    layers = quantized_layers(model).values()
    count = sum(needs_vnni(layer.precision) for layer in layers)
    kinds = {entry.get('weight') for entry in onnx['layers'].values()}
    if count and 'uint8' in kinds:
        yield (
            f'{count} layers at W8A8 have unsigned weights, exact on every processor; '
            '--vnni is faster on those that have it'
        )
    elif count:
        yield (
            f'{count} layers at W8A8 are exact on processors with VNNI, and on those '
            'that are no x86; without --vnni they are so everywhere'
        )
    narrow = sum(0 < layer.precision.a_bits < 8 for layer in layers)
    if narrow and args.target in FASTER:
        yield (
            f'{narrow} layers have inputs of fewer than 8 bits, and each clips them; '
            f'with 8, {args.target} was up to {FASTER[args.target]} % faster, whatever '
            'bits the weights have (docs/deploy.md)'
        )
    if not (found := onnx['islands']):
        return
    deviation = max(found['deviation'].values())
    yield (
        f'{found["tensors"]} tensors between layers are rounded to 8 bits for '
        f'{args.target}, which changes outputs by {100 * deviation:.2g} % (root mean '
        f'square, of {args.batches} batches)'
    )
    if found['trained']:
        yield f'{found["trained"]} of their grids are those of the training'
    told = dict(
        shared='read 8 bits of another range than their own',
        requantized='quantize once more, as others read their input at more bits',
        open='read integers in float: there the integers end',
    )
    for key, text in told.items():
        if names := found[key]:
            yield f'{some_of(names)} {text}'


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    console = terminal(120)
    paths = outputs(args)
    file = next(iter(paths.values())).parent / 'sizes.json'
    replaced = {path: check_place(path, '--out') for path in (*paths.values(), file)}
    cfg = load_config(args)
    check_file(args.checkpoint, 'checkpoint')
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu')
    meta = policy_meta(cfg)
    model = build(cfg)
    load_whole(model, checkpoint, args.checkpoint)
    shape = args.input_shape or meta.get('input_shape') or reference_input_shape(model)
    rest = rest_bytes(model)
    known = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    classes = known.get('classes') or ()
    if not meta.get('costs'):
        meta = dict(meta, input_shape=list(shape), costs=costs_of(model, shape))
    vendors = [kind for kind in paths if kind not in OURS]
    trained = trained_target(model)
    args.target = args.target or trained
    if args.fold or vendors or (trained and 'onnx' in paths):
        with console.status('folding BatchNorms'):
            report = fold_batchnorm(model, shape)
        console.print(
            f'folded {len(report.folded)} BatchNorms; largest deviation of a layer '
            f'{report.largest:.1e} of its largest output'
        )
        for name, reason in report.unfolded.items():
            console.print(f'{name} stays: {reason}', soft_wrap=True)
    onnx, notes = None, []
    with beside(paths) as new:
        if 'onnx' in new:
            from mmmpq.export.onnx.graph import export_onnx

            with console.status('tracing'):
                options = dict(
                    containers=args.containers,
                    vnni=args.vnni,
                    classes=classes,
                    end_to_end=args.end_to_end,
                    normalize=args.normalize,
                )
                if args.target:
                    images = preprocessed(model, cfg, args.batches)
                    options.update(target=args.target, images=images)
                onnx = export_onnx(model, new['onnx'], shape, args.opset, **options)
        if 'qonnx' in new:
            from mmmpq.export.onnx.graph import export_qonnx

            with console.status('tracing'):
                export_qonnx(model, new['qonnx'], shape, classes)
        if vendors:
            from mmmpq.export.vendors.write import export_vendors

            with console.status('tracing'):
                files = {kind: new[kind] for kind in vendors}
                notes += export_vendors(model, files, shape, classes, args.round_up)
        if 'packed' in new:
            with console.status('packing'):
                save_packed(model, new['packed'], cfg, meta, known)
                check_packed(model, new['packed'], shape)
    if others := [kind for kind in paths if trained and kind not in ('onnx', 'packed')]:
        notes.append(
            f'{", ".join(others)}: without the 8 bits of tensors between layers'
        )
    if onnx:
        notes += [f'onnx: {note}' for note in onnx_notes(model, args, onnx)]
    for note in notes:
        console.print(note, soft_wrap=True)
    found = sizes(model, paths.get('packed'), onnx, rest)
    console.print(size_table(found))
    atomic_write(file, json.dumps(found, indent=2) + '\n')
    for kind, path in paths.items():
        size = human(path.stat().st_size, 'B')
        console.print(f'{kind}: {path} ({size}{replaced[path]})', soft_wrap=True)
    console.print(f'sizes: {file}{replaced[file]}', soft_wrap=True)
