"""A model as an ONNX graph with a marker at each tensor that a layer quantizes."""

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.autograd import Function

from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.pooling import as_products
from mmmpq.layers import QuantizedLayer, quantized_layers
from mmmpq.layers.quantized_weight import outputs_first

MARKER = 'mmmpq', 'Quantized'
# What the exporters of the oldest and the newest torch both write. The converter of
# onnx takes the graph to any later one.
TRACED_OPSET = 18
ISLAND = 'island'  # target of the markers of tensors between layers
FLOAT = 'float'  # containers of a graph of the layers' own float operations


class _Mark(Function):
    @staticmethod
    def forward(ctx, x, layer, target):
        return x.clone()

    @staticmethod
    def symbolic(g, x, layer, target):
        marked = g.op('::'.join(MARKER), x, layer_s=layer, target_s=target)
        marked.setType(x.type())
        return marked


class _Product(Function):
    """x Wᵀ as a Gemm without a bias, which ONNX Runtime computes in integers, or as it
    is. Gemm with a bias stays in float, and MatMul becomes MatMulNBits, which rounds a
    float input to 8 bits."""

    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight.t()

    @staticmethod
    def symbolic(g, x, weight):
        return g.op('Gemm', x, weight, transB_i=1)


def trace(
    model: nn.Module, images: Tensor, opset: int, containers: str = '8bit'
) -> tuple[bytes, dict[str, Any]]:
    """Runs the network of ``model`` on ``images`` and writes down what it does.

    By the exporter of TorchScript: the toolboxes' heads pass through it as they are, in
    a thirtieth of the time that torch.export takes for them, and it is in every
    version of torch from 2.1 on. Only what the quantized layers compute is replaced,
    by the float operation on marked weights and inputs.

    Args:
        model: Unwrapped, in evaluation.
        images: Preprocessed, (N, C, H, W).
        opset: At most 18.
        containers: 'auto' or '8bit', which has biases inside of all convolutions; or
            :data:`FLOAT`, which has them inside of all layers.

    Returns:
        A serialized ONNX model, and the names of its outputs, nested as those of
        :func:`.onnx_cut.network`.

    Raises:
        ValueError: A module could not be exported; it is named.
    """
    axes = {0: 'batch'}
    if onnx_cut.takes_any_size(model):
        axes |= {2: 'height', 3: 'width'}
    written = _written(model, images, opset, containers, axes)
    more = torch.cat([images, images[:1]])
    if _written(model, more, opset, containers, axes)[0] == written[0]:
        return written
    # Swin and others compute with the number of images as Python ints.
    print_log(
        'ONNX: the network counts its images with numbers of Python, which a graph '
        'keeps; the file takes one image at a time',
        logger='current',
        level=logging.WARNING,
    )
    del axes[0]
    return _written(model, images[:1], opset, containers, axes)


def _written(
    model: nn.Module,
    images: Tensor,
    opset: int,
    containers: str,
    axes: dict[int, str],
) -> tuple[bytes, dict[str, Any]]:
    with torch.no_grad(), as_products(model), _marked(model, containers):
        try:
            tensors = onnx_cut.network(model, images)
            names = onnx_cut.names(model, tensors)
            outputs = dict(
                zip(onnx_cut.leaves(names), onnx_cut.leaves(tensors), strict=True)
            )
            model.forward = lambda x: tuple(onnx_cut.leaves(onnx_cut.network(model, x)))
            data = exported(
                model,
                [images],
                ['images'],
                list(outputs),
                opset,
                {'images': axes, **{n: _axes(n, t, axes) for n, t in outputs.items()}},
            )
        except Exception as error:
            where = _module_at_fault(model, images, error)
            raise ValueError(
                f'ONNX export failed in {where}: {type(error).__name__}: '
                f'{str(error).splitlines()[0] if str(error) else ""}'
            ) from error
        finally:
            model.__dict__.pop('forward', None)
    return data, names


def exported(
    module: nn.Module,
    inputs: Sequence[Tensor],
    reads: Sequence[str],
    gives: Sequence[str],
    opset: int,
    axes: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """The graph of a module's forward, serialized.

    Args:
        inputs: To trace with.
        reads: Names of the inputs.
        gives: Names of the outputs.
        axes: By name, those of any length.
    """
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            module,
            tuple(inputs),
            data,
            opset_version=opset,
            input_names=list(reads),
            output_names=list(gives),
            dynamic_axes=axes,
            **_TORCHSCRIPT,
        )
    return data.getvalue()


_TORCHSCRIPT = (
    {'dynamo': False}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters
    else {}
)


def _axes(name: str, tensor: Tensor, images: dict[int, str]) -> dict[int, str]:
    """An output's: the batch, and of maps of images of any size their own size."""
    spatial = {d: f'{name}_{a}' for d, a in images.items() if 0 < d < tensor.dim()}
    batch = {d: a for d, a in images.items() if d == 0}
    return {**batch, **(spatial if tensor.dim() == 4 else {})}


@contextlib.contextmanager
def _marked(model: nn.Module, containers: str) -> Iterator[None]:
    """Within it, quantized layers compute in float, on marked weights and inputs, and
    tensors between them are marked and not quantized."""
    layers, islands = quantized_layers(model), getattr(model, 'islands', {})
    for name, island in islands.items():
        island.forward = partial(mark_between, name)
    for name, layer in layers.items():
        layer._quantized = _marking(name, layer, containers)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer._quantized
        for island in islands.values():
            del island.forward


def mark_between(name: str, x: Tensor) -> Tensor:
    """Marks a tensor between layers; :mod:`.places` reads it."""
    return _Mark.apply(x, name, ISLAND)


def _marking(name: str, layer: QuantizedLayer, containers: str):
    def marked(x: Tensor) -> Tensor:
        w_bits, a_bits = layer.precision
        # As its parameter holds it: the exporter drops what turns it to and fro.
        weight = outputs_first(layer._latent_weight(), layer.out_dim)
        weight = _Mark.apply(weight, name, 'weight')
        weight = outputs_first(weight, layer.out_dim)
        if a_bits != 32:
            x = _Mark.apply(x, name, 'activation')
        if not layer.affine or containers == FLOAT:
            return layer.compute(x, weight, layer.bias)
        if isinstance(layer, nn.Linear) and w_bits != 32:
            if x.dim() == 2:
                y = _Product.apply(x, weight)
            else:  # Gemm takes matrices
                y = _Product.apply(x.flatten(0, -2), weight)
                y = y.view(*x.shape[:-1], len(weight))
            return y if layer.bias is None else y + layer.bias
        # ONNX Runtime rounds the bias of a convolution between quantized tensors to
        # multiples of the two scales' product. What it buys is an integer convolution;
        # where that is not wanted, the bias is added behind.
        inside = 32 in (w_bits, a_bits) or (w_bits, a_bits) == (8, 8)
        inside |= containers == '8bit' and a_bits != 16  # which no convolution takes
        if layer.bias is None or inside:
            return layer.compute(x, weight, layer.bias)
        bias = layer.bias.view(-1, *[1] * len(layer.kernel_size))
        return layer.compute(x, weight, None) + bias

    return marked


def _module_at_fault(model: nn.Module, images: Tensor, error: Exception) -> str:
    """The innermost module that was running, or that calls the operator named."""
    names = {id(m): n for n, m in model.named_modules()}
    name = ''
    frame = error.__traceback__
    while frame is not None:
        name = names.get(id(frame.tb_frame.f_locals.get('self'))) or name
        frame = frame.tb_next
    operator = re.search(r'aten::\w+', str(error))
    if operator and not name:
        with contextlib.suppress(Exception):
            graph = torch.jit.trace(model, images, check_trace=False).inlined_graph
            scope = graph.findNode(operator[0]).scopeName()
            name = scope.rpartition('/')[2].removeprefix('__module.')
    return name or type(model).__name__
