"""Post-training quantization beside that of others: one net, the same images, one run.

A classifier's agreement with its float net on the first test images, paired image by
image; the same training images calibrate all of them. 8 bits:

* `ours W8A8`: `mmmpq ptq --policy W8A8`;
* `onnxruntime`: its static quantization, u8 tensors, s8 weights per channel;
* `nncf`: its default, in OpenVINO;
* `mct`: Model Compression Toolkit for its default target.

Mixed, inputs of 8 bits, under the weight bytes of W4: `ours mixed` and `mct mixed`,
both from weights of 2, 4 and 8 bits. What is not installed is left out, by name.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from agreement import LOGITS, compare, interval, logits_of, read_config
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding as PADDED
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runtimes import RUNTIMES
from torch import Tensor, nn

import mmmpq
from mmmpq.cli.flags.common import add_cfg_options, positive
from mmmpq.costs.profile import reference_input_shape
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.launch import run
from mmmpq.engine.post_training import runner_of, training_images
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.latency.table import machine
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.openvino import compile_net, read_net
from mmmpq.fileio import atomic_write, check_file
from mmmpq.layers import quantized_layers
from mmmpq.models import quantize
from mmmpq.models.copying import copy_of

Logits = np.ndarray  # (N, K)
MIXED = ['W2A8', 'W4A8', 'W8A8']
PACKAGES = dict(
    onnxruntime=['onnxruntime', 'onnx'],
    nncf=['openvino', 'nncf'],
    mct=['model_compression_toolkit'],
)
NAMES = ('ours W8A8', 'onnxruntime', 'nncf', 'mct', 'ours mixed', 'mct mixed')


class Images:
    """What all of them are given.

    Attributes:
        batches: Of the training loader, as it gives them.
        inputs: The same, preprocessed (N, C, H, W).
        weights: Elements of all weights that are quantized.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cfg = args, read_config(args)
        runner = runner_of(self.cfg, args.checkpoint, 0)
        self.float = unwrapped(runner).eval()
        self.shape = tuple(reference_input_shape(self.float))
        self.batches = training_images(runner, args.images)
        self.inputs = [self.preprocessed(batch) for batch in self.batches]
        self.cfg.test_dataloader.dataset.indices = args.test_images
        fixed = quantize(copy_of(self.float), policy='W8A8')
        self.weights = sum(x.weight.numel() for x in quantized_layers(fixed).values())

    @property
    def limit(self) -> float:
        """Weight bytes of 4 bits a weight."""
        return self.weights / 2

    def preprocessed(self, batch: dict) -> Tensor:
        return self.float.data_preprocessor(batch, False)['inputs']

    def test(self) -> Iterator[dict]:
        return Runner.build_dataloader(self.cfg.test_dataloader)

    def logits(self, net: Callable[[Tensor], Tensor], title: str) -> Logits:
        """Of the test images."""
        found = [net(self.preprocessed(batch)) for batch in track(self.test(), title)]
        return np.concatenate([np.asarray(x) for x in found])


class Plain(nn.Module):
    """A classifier that can be traced: from inputs to logits, paddings written out."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.model = model
        sizes: dict[str, Sequence[int]] = {}
        padded = {n: m for n, m in model.named_modules() if isinstance(m, PADDED)}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, given, name=name: sizes.update({name: given[0].shape[-2:]})
            )
            for name, layer in padded.items()
        ]
        with torch.no_grad():
            self.forward(inputs)
        for hook in hooks:
            hook.remove()
        for name, layer in padded.items():
            pads = []
            for i in (1, 0):  # last axis first
                reach = layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
                steps = math.ceil(sizes[name][i] / layer.stride[i]) - 1
                pad = max(0, steps * layer.stride[i] + reach - sizes[name][i])
                pads += [pad // 2, pad - pad // 2]
            layer.__class__ = nn.Conv2d
            model.set_submodule(name, nn.Sequential(nn.ZeroPad2d(pads), layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, mode='tensor')


def ours(images: Images, mixed: bool) -> tuple[Logits, float]:
    limit = dict(type='WeightBytes', limit=f'{images.limit} B')
    quant = dict(candidates=MIXED) if mixed else dict(policy='W8A8')
    found = mmmpq.ptq(
        copy_of(images.float),
        images.batches,
        [limit] if mixed else (),
        quant,
        input_shape=images.shape,
        rounding=images.args.rounding,
    )
    layers = quantized_layers(found.model).values()
    size = sum(x.weight.numel() * x.precision[0] / 8 for x in layers)
    return logits_of(found.model, images.test(), 'ours'), size


def by_runtime(images: Images, name: str, folder: Path) -> tuple[Logits, float]:
    """Of a runtime's own tool, in that runtime."""
    net = quantize(copy_of(images.float), policy='W32A32', fixed={'*': None}).eval()
    fold_batchnorm(net, images.shape)
    source = folder / 'float.onnx'
    export_onnx(net, source, images.shape)
    single = [x[None].numpy() for batch in images.inputs for x in batch]
    if name == 'onnxruntime':
        import onnxruntime

        out = folder / 'own.onnx'
        RUNTIMES[name]().quantize(source, out, single)
        session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])

        def each(x: np.ndarray) -> np.ndarray:
            return session.run(None, {session.get_inputs()[0].name: x})[0]
    else:
        out = folder / 'own.xml'
        RUNTIMES['openvino']().quantize(source, out, single)
        compiled = compile_net(read_net(out), torch.get_num_threads())

        def each(x: np.ndarray) -> np.ndarray:
            return compiled(x)[0]

    def net_of(batch: Tensor) -> np.ndarray:
        return np.concatenate([each(x[None].numpy()) for x in batch])

    return images.logits(net_of, name), images.weights


def mct(images: Images, mixed: bool) -> tuple[Logits, float]:
    import model_compression_toolkit as toolkit

    def data() -> Iterator[list[Tensor]]:
        yield from ([batch] for batch in images.inputs)

    plain = Plain(copy_of(images.float), images.inputs[0])
    core = toolkit.core
    options = {}
    if mixed:
        options = dict(
            target_resource_utilization=core.ResourceUtilization(images.limit),
            core_config=core.CoreConfig(
                mixed_precision_config=core.MixedPrecisionQuantizationConfig()
            ),
        )
    net, info = toolkit.ptq.pytorch_post_training_quantization(
        plain.eval(), data, **options
    )
    size = info.final_resource_utilization.weights_memory if mixed else images.weights
    with torch.no_grad():
        logits = images.logits(lambda x: net(x).numpy(), 'mct')
    return logits, size


def measured(images: Images, name: str) -> dict:
    """A row of the table, but for what it is compared with."""
    began = time.monotonic()
    if name.startswith('ours'):
        logits, size = ours(images, name.endswith('mixed'))
    elif name.startswith('mct'):
        logits, size = mct(images, name.endswith('mixed'))
    else:
        with tempfile.TemporaryDirectory() as folder:
            logits, size = by_runtime(images, name, Path(folder))
    seconds = round(time.monotonic() - began)
    return dict(name=name, logits=logits, weight_bytes=size, seconds=seconds)


def compared(reference: Logits, row: dict, own: dict | None) -> dict:
    """Its agreement, and what ours is ahead, in points, with 95 % intervals.

    Args:
        reference: Logits of the float net.
        row: Of :func:`measured`.
        own: The first row of its kind; None: this is it.
    """
    logits = row.pop('logits')
    classes = reference.argmax(1)
    same = 100.0 * (logits.argmax(1) == classes)
    row |= compare(reference, logits) | dict(same=same)
    if own is not None:
        row['ours_ahead'] = interval(own['same'] - same)
    return row


def table(rows: list[dict]) -> Table:
    heads = 'weight bytes', 'agreement, %', 'KL, nats', 'ours ahead, points', 's'
    found = Table('', *heads)
    for row in rows:
        values = [row['agreement'], row['kl'], row.get('ours_ahead')]
        digits = (1, 3, 1)
        texts = [
            '' if v is None else f'{v[0]:.{d}f} ± {v[1]:.{d}f}'
            for v, d in zip(values, digits, strict=True)
        ]
        found.add_row(
            row['name'], f'{row["weight_bytes"]:,.0f}', *texts, f'{row["seconds"]}'
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='of a float classifier, data like crops.py')
    parser.add_argument('checkpoint', help='of the float net')
    parser.add_argument('folder', type=Path, help='of labelled images: agreement.py')
    parser.add_argument('--names', nargs='+', choices=NAMES, default=NAMES)
    parser.add_argument('--images', type=positive, default=128, metavar='N')
    parser.add_argument('--test-images', type=positive, default=1000, metavar='N')
    parser.add_argument('--rounding', choices=('learned', 'nearest'), default='learned')
    parser.add_argument('--json', type=Path, help='write the numbers there')
    add_cfg_options(parser)
    args = parser.parse_args()
    check_file(str(args.folder / LOGITS), 'folder (label it first)')
    console = Console()
    names = []
    for name in args.names:
        lacking = [p for p in PACKAGES.get(name.split()[0], ()) if not find_spec(p)]
        if lacking:
            console.print(f'{name} is left out: {", ".join(lacking)} not installed')
        else:
            names.append(name)
    images = Images(args)
    reference = np.load(args.folder / LOGITS)[: args.test_images]
    rows = []
    for name in names:
        row = measured(images, name)
        kind = name.endswith('mixed')
        own = next((r for r in rows if r['name'].endswith('mixed') == kind), None)
        rows.append(compared(reference, row, own))
        console.print(table(rows))
        if args.json:
            written(args, rows)


def written(args: argparse.Namespace, rows: list[dict]) -> None:
    """As they come: the last ones take longest."""
    shown = [{k: v for k, v in row.items() if k != 'same'} for row in rows]
    facts = dict(machine=machine(), images=args.images, rounding=args.rounding)
    atomic_write(args.json, json.dumps(dict(facts, rows=shown), indent=1) + '\n')


if __name__ == '__main__':
    run(main)
