"""One layer of a model as an ONNX graph of its own, in float and in 8-bit integers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmmpq.costs import LayerProfile
from mmmpq.export.onnx.model import sums_are_cut

OPSET, IR_VERSION = 21, 10
# Layers of these types can be quantized.
QUANTIZABLE = (
    *('Conv1d', 'Conv2d', 'Conv3d', 'ConvTranspose2d', 'Linear'),
    *('DepthwiseConv1d', 'DepthwiseConv2d', 'DepthwiseConv3d'),
)
_STEP = 0.02


@dataclass(frozen=True)
class Work:
    """What a layer does on one batch at the reference input; see LayerProfile.

    ``pads`` are those of ONNX: of all axes at their begin, then at their end.
    ``batch``: images, or the RoIs or windows of an image. ``closed``: whether whatever
    reads the output quantizes it first.
    """

    type: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    input_size: tuple[int, ...]
    batch: int = 1
    pads: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    closed: bool = True


def works_of(layer: LayerProfile, module: nn.Module, closed: bool = True) -> list[Work]:
    """One for each size of its inputs; none for a layer that is never called."""
    shape = layer.shape
    inputs = sum(shape['input_sizes'].values())
    extra: dict = dict(closed=closed)
    if isinstance(module, _ConvNd):
        # (left, right) of the last axis first
        pads = module._reversed_padding_repeated_twice
        extra.update(
            pads=(*pads[-2::-2], *pads[::-2]),
            dilation=tuple(module.dilation),
            output_padding=tuple(module.output_padding),
        )
    return [
        Work(
            layer.type,
            shape['in_channels'],
            shape['out_channels'],
            tuple(shape['kernel_size']),
            tuple(shape['stride']),
            shape['groups'],
            size,
            max(1, round(inputs / layer.calls)),
            **extra,
        )
        for size in shape['input_sizes']
    ]


def float_graph(work: Work) -> ModelProto | None:
    """The layer in float; None for a type that ONNX has no operator for."""
    return _graph([work], quantized=False)


def integer_graph(work: Work, signed: bool | None = None) -> ModelProto | None:
    """The layer with 8-bit weights and inputs; None if it cannot be quantized.

    As :func:`.onnx_graph.export_onnx` writes it, on processors with VNNI for these
    alone: input and weights go through QuantizeLinear and DequantizeLinear, and so does
    the output of a closed layer, as by the layer behind.

    Args:
        signed: Whether weights are int8; default: where ONNX Runtime cuts no sums.
    """
    if work.type not in QUANTIZABLE:
        return None
    return _graph([work], True, signed)


def integer_row(
    first: Work, second: Work, signed: bool | None = None
) -> ModelProto | None:
    """Two layers in a row with 8-bit weights and inputs; None if one cannot be
    quantized."""
    if not {first.type, second.type} <= set(QUANTIZABLE):
        return None
    return _graph([first, second], True, signed)


def _graph(
    works: Sequence[Work], quantized: bool, signed: bool | None = None
) -> ModelProto | None:
    """Layers one after the other."""
    if any(work.type.endswith('DeformConv2d') for work in works):
        return None
    work = works[0]
    dense = work.type in ('Linear', 'MultiheadAttention')
    graph = _Graph(quantized, signed)
    channels, size = work.in_channels, work.input_size
    shape = (work.batch, *size, channels) if dense else (work.batch, channels, *size)
    rank = len(shape)
    outputs = ['x']
    for name, work in zip(('', '_behind'), works, strict=False):
        (x,) = (graph.pair(y, y) for y in outputs)
        if (
            work.type == 'MultiheadAttention'
        ):  # its projections of query, key, value, out
            outputs = [graph.linear(x, work, rank, f'{j}') for j in range(4)]
        elif dense:
            outputs = [graph.linear(x, work, rank, name)]
        else:
            outputs = [graph.conv(x, work, name)]
    if works[-1].closed:
        outputs = [graph.pair(y, f'{y}_out') for y in outputs]
    return graph.model(shape, outputs, rank)


class _Graph:
    """Nodes and random weights; ``pair`` puts Q/DQ around a tensor if quantized."""

    def __init__(self, quantized: bool, signed: bool | None) -> None:
        self.quantized, self.signed = quantized, signed
        self.nodes, self.initializers = [], []
        self.random = np.random.default_rng(0)

    def pair(self, name: str, new: str) -> str:
        if not self.quantized:
            return name
        step = self.add(f'{new}_step', np.float32(_STEP))
        zero = self.add(f'{new}_zero', np.uint8(0))
        q = self.node('QuantizeLinear', [name, step, zero], f'{new}_q')
        return self.node('DequantizeLinear', [q, step, zero], f'{new}_dq')

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        if not self.quantized:
            values = self.random.standard_normal(shape, np.float32)
            return self.add(name, values * np.float32(_STEP))
        signed = not sums_are_cut() if self.signed is None else self.signed
        kind, zero = (np.int8, 0) if signed else (np.uint8, 128)
        q = self.random.integers(zero - 127, zero + 128, shape, kind)
        inputs = [
            self.add(f'{name}_q', q),
            self.add(f'{name}_step', np.float32(_STEP / 127)),
            self.add(f'{name}_zero', kind(zero)),  # without it, no Gemm is fused
        ]
        return self.node('DequantizeLinear', inputs, name)

    def conv(self, x: str, work: Work, name: str) -> str:
        transposed = 'Transpose' in work.type
        channels = work.in_channels, work.out_channels
        out, inside = channels if transposed else channels[::-1]
        shape = (out, inside // work.groups, *work.kernel_size)
        bias = self.add(f'bias{name}', np.zeros(work.out_channels, np.float32))
        return self.node(
            'ConvTranspose' if transposed else 'Conv',
            [x, self.weight(f'weight{name}', shape), bias],
            f'y{name}',
            strides=work.stride,
            pads=work.pads,
            dilations=work.dilation,
            group=work.groups,
            **(dict(output_padding=work.output_padding) if transposed else {}),
        )

    def linear(self, x: str, work: Work, rank: int, name: str) -> str:
        """As the export does: Gemm, of larger float tensors MatMul.

        A quantized layer adds its bias behind the Gemm.
        """
        bias = self.add(f'bias{name}', np.zeros(work.out_channels, np.float32))
        if rank == 2 or self.quantized:
            shape = (work.out_channels, work.in_channels)
            inputs = [x, self.weight(f'weight{name}', shape)]
            if not self.quantized:
                return self.node('Gemm', [*inputs, bias], f'y{name}', transB=1)
            if rank > 2:
                rows = self.add(f'rows{name}', np.array([-1, work.in_channels]))
                inputs[0] = self.node('Reshape', [x, rows], f'rows_of_x{name}')
            product = self.node('Gemm', inputs, f'product{name}', transB=1)
            if rank > 2:
                full = np.array([work.batch, *work.input_size, work.out_channels])
                back = [product, self.add(f'shape{name}', full)]
                product = self.node('Reshape', back, f'full{name}')
            return self.node('Add', [product, bias], f'y{name}')
        weight = self.weight(f'weight{name}', (work.in_channels, work.out_channels))
        product = self.node('MatMul', [x, weight], f'product{name}')
        return self.node('Add', [product, bias], f'y{name}')

    def add(self, name: str, values: np.ndarray | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def model(self, shape: tuple[int, ...], outputs: list[str], rank: int):
        def info(name: str, shape: tuple) -> object:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            'layer',
            [info('x', shape)],
            [info(y, tuple(f'{y}_{i}' for i in range(rank))) for y in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid('', OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
