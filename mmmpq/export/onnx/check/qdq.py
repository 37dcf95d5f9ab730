"""What a runtime does with each layer of a graph of QuantizeLinear/DequantizeLinear.

By the lists in :mod:`..target`'s data files, each of which names its sources. Common
to all of them: a layer is computed in integers where a DequantizeLinear stands directly
before its input and one before its weight (what only reshapes may stand between), of
8 bits, with one scale for the input, and one for the weight or one for each output
channel, which no sum of integers mixes. Source: ONNX, DequantizeLinear,
https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, and QLinearConv there.
"""

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto

from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS, REFUSED, Verdict, merged
from mmmpq.export.onnx.check.weights import RESHAPING, Net, named, size
from mmmpq.export.onnx.clips import CLIPS, bounds
from mmmpq.export.onnx.rewire import ASKING
from mmmpq.export.onnx.target import Target
from mmmpq.export.onnx.wires import Grid

QDQ = 'QuantizeLinear', 'DequantizeLinear'
PER_AXIS = 13  # the first opset with one scale for each channel
SUMS = 'Add', 'Sum'


def check_qdq(model: ModelProto, target: Target) -> list[Verdict]:
    """The verdict on every layer, and on what is not in integers between them.

    Args:
        model: With nodes of QuantizeLinear and DequantizeLinear.
    """
    return merged(_Judge(model, target))


class _Judge:
    def __init__(self, model: ModelProto, target: Target) -> None:
        self.net, self.target = Net(model), target
        self.passing = tuple({*RESHAPING, *target.through} - {'Concat', 'Resize'})
        self.made: set[str] = set()  # what layers that compute in integers make
        self.told: set[str] = set()  # quantizers whose faults layers were told

    def __iter__(self) -> Iterator[Verdict]:
        others = []
        for node in self.net.nodes:
            if self.net.is_layer(node):
                yield self.layer(node)
            elif node.op_type not in (*QDQ, *CLIPS, *ASKING, *self.passing):
                others += self.operator(node)
        yield from others
        for node in self.net.nodes:
            if node.op_type in QDQ and named(node) not in self.told:
                yield from self.quantizer(node)

    def layer(self, node: NodeProto) -> Verdict:
        net, name, kind = self.net, self.net.layer_name(node), node.op_type
        if not any(map(net.quantizer_of, node.input[:2])):
            why = ['it is not quantized']
            return Verdict(name, kind, FLOAT, why, quantized=False, nodes=[named(node)])
        why, refused = [], []
        if kind not in self.target.integers:
            why.append(f'{self.target.name} computes {kind} in float')
        for part, tensor in zip(('input', 'weight'), node.input, strict=False):
            pair = net.before(tensor, self.passing)
            if pair is None or pair.op_type != 'DequantizeLinear':
                why.append(
                    f'its {part} is float: {net.maker_of(tensor)} makes it, '
                    'no DequantizeLinear'
                )
                continue
            before = net.maker.get(pair.input[0])
            if self.target.clip == 'float' and before and before.op_type == 'Clip':
                why.append(
                    f'Clip {named(before)} clips integers of its {part}; accepted is '
                    'one of floats before QuantizeLinear'
                )
            axis = self.out_axis(node, tensor) if part == 'weight' else None
            for one in (pair, before):
                if one is None or one.op_type not in QDQ:
                    continue
                wrong = self.faults(one, part, axis)
                self.told.add(named(one))
                why += [text for text, _ in wrong if text not in why]
                refused += [text for text, harsh in wrong if harsh]
        if not why and kind in self.target.closed and not self.is_closed(node):
            why.append(
                f'no one quantizer reads what it makes, and {self.target.name} '
                f'computes {kind} in integers between quantized tensors alone'
            )
        if not why:
            self.made.update(node.output)
        does = REFUSED if refused else FLOAT if why else INTEGERS
        return Verdict(name, kind, does, why, nodes=[named(node)])

    def out_axis(self, node: NodeProto, tensor: str) -> int:
        """The axis of the output channels in what the quantizer of a weight reads."""
        rank = np.ndim(self.net.constant(self.net.origin(tensor)))
        match node.op_type:
            case 'Conv':
                axis = 0
            case 'ConvTranspose':
                axis = 1
            case 'Gemm':
                axis = 0 if _attribute(node, 'transB', 0) else 1
            case _:
                axis = rank - 1
        at = self.net.maker.get(tensor)
        while at is not None and at.op_type in RESHAPING:
            if at.op_type == 'Transpose':
                axis = list(_attribute(at, 'perm', range(rank)[::-1]))[axis]
            at = self.net.maker.get(at.input[0])
        return axis

    def faults(
        self, node: NodeProto, part: str, axis: int | None = None
    ) -> list[tuple[str, bool]]:
        """What is wrong with a quantizer, and whether the target refuses the file.

        Args:
            part: 'input' or 'weight'.
            axis: Of the output channels of a weight.
        """
        net, strict = self.net, self.target.type == 'int8'
        at = f'{node.op_type} {named(node)}'
        scale = net.constant(node.input[1])
        point = net.constant(node.input[2]) if len(node.input) > 2 else None
        signed = strict or (part == 'weight' and self.target.signed_weights)
        accepted = ('int8',) if signed else ('uint8', 'int8')
        kind = self.type_of(node, point)
        faults = []
        if kind not in accepted:
            small = kind.endswith(('4', '2')) and part == 'weight'
            faults.append(
                (
                    f'{at}: its type is {kind}; accepted is {" or ".join(accepted)}',
                    strict and not small and not kind.startswith('float'),
                )
            )
        if len(node.input) > 2 and node.input[2] and point is None:
            faults.append((f'{at}: its zero point is no constant', strict))
        elif signed and point is not None and np.any(point.astype(np.float64)):
            worst = np.abs(point.astype(np.int64)).max()
            faults.append(
                (f'{at}: its zero point is {worst} at most; accepted is 0', strict)
            )
        if scale is None:
            return [*faults, (f'{at}: its scale is no constant', strict)]
        if np.any(scale <= 0):
            faults.append((f'{at}: a scale is not above 0', strict))
        count = size(scale)
        if count > 1 and part == 'input':
            faults.append(
                (f'{at}: {count} scales of an input; accepted is one', strict)
            )
        elif count > 1 and axis is not None:
            faults += [(f'{at}: {text}', False) for text in self.channels(node, axis)]
        return faults

    def channels(self, node: NodeProto, axis: int) -> Iterator[str]:
        """What is wrong with the scales of a weight's channels."""
        weight = self.net.constant(self.net.origin(node.input[0]))
        given = _attribute(node, 'axis', 1)
        given += weight.ndim if given < 0 else 0
        if self.net.constant(node.input[1]).ndim > 1:
            yield 'its scales are of blocks; accepted are those of output channels'
        elif given != axis:
            yield (
                f'its scales lie along axis {given}; accepted is {axis}, of the output '
                'channels'
            )
        if self.net.opset < PER_AXIS:
            yield (
                f'opset {self.net.opset} has one scale for a tensor; accepted is '
                f'{PER_AXIS} or later for one for each channel'
            )

    def type_of(self, node: NodeProto, point: np.ndarray | None) -> str:
        """Of the integers that a quantizer makes or reads."""
        if point is not None:
            return point.dtype.name
        if node.op_type == 'DequantizeLinear':
            stored = self.net.constant(node.input[0])
            if stored is not None:
                return stored.dtype.name
            maker = self.net.before(node.input[0], (*self.passing, 'Clip'))
            if maker is not None and maker.op_type == 'QuantizeLinear':
                return self.type_of(maker, self.net.constant([*maker.input, ''][2]))
        return {3: 'int8', 5: 'int16', 4: 'uint16', 21: 'uint4', 22: 'int4'}.get(
            _attribute(node, 'output_dtype', 2), 'uint8'
        )

    def is_closed(self, node: NodeProto) -> bool:
        """Whether one quantizer reads all that it makes, behind clips at most that
        leave what its integers can hold."""
        waiting = [(name, -np.inf, np.inf) for name in node.output[:1]]
        quantizers = 0
        while waiting:
            name, low, high = waiting.pop()
            readers = self.net.readers[name]
            if name in self.net.outputs or not readers:
                return False
            for reader in readers:
                ends = bounds(self.net, reader) if reader.op_type in CLIPS else None
                if ends or reader.op_type in self.passing:
                    a, b = ends or (low, high)
                    waiting += [(o, max(low, a), min(high, b)) for o in reader.output]
                elif reader.op_type == 'QuantizeLinear':
                    quantizers += 1
                    grid = self.net.grid(reader)
                    if grid and not _holds(low, high, grid):
                        return False
                elif reader.op_type not in ASKING:
                    return False
        return quantizers == 1

    def operator(self, node: NodeProto) -> Iterator[Verdict]:
        """On an operator between layers; nothing where it computes in integers."""
        net, kind = self.net, node.op_type
        data = [n for n in node.input if n and self.is_data(n)]
        read = [net.before(name, self.passing) for name in data]
        quantized = [n is not None and n.op_type == 'DequantizeLinear' for n in read]
        sums = kind in SUMS and len(data) > 1
        if not (sums or any(quantized)):
            return
        why = [
            f'its input is float: {net.maker_of(name)} makes it, no DequantizeLinear'
            for name, is_quantized in zip(data, quantized, strict=True)
            if not is_quantized
        ]
        known = kind in (*self.target.operators, *self.target.integers)
        known |= kind in self.target.through  # Concat and Resize
        if not known:
            why = ['it reads integers in float: here integers end']
        elif self.joins(data, quantized):
            return
        elif not why and kind in self.target.closed and not self.is_closed(node):
            why = ['no one quantizer reads what it makes']
        if why:
            does, nodes = FLOAT, [named(node)]
            yield Verdict(named(node), kind, does, why, is_layer=False, nodes=nodes)

    def is_data(self, name: str) -> bool:
        """Whether a tensor depends on the images."""
        return self.net.constant(name) is None and not self.net.origin(name)

    def joins(self, data: list[str], quantized: list[bool]) -> bool:
        """Whether a layer in integers takes a sum in: the other input is quantized."""
        alone = [
            name
            for name, is_quantized in zip(data, quantized, strict=True)
            if not is_quantized
        ]
        return (
            self.target.joins_sums
            and len(alone) == 1 < len(data)
            and alone[0] in self.made
            and self.net.only_reader(alone[0]) is not None
        )

    def quantizer(self, node: NodeProto) -> Iterator[Verdict]:
        """On a quantizer that no layer reads, where it alone has the file refused."""
        why = [text for text, refused in self.faults(node, 'input') if refused]
        if why:
            name = named(node)
            yield Verdict(
                name, node.op_type, REFUSED, why, is_layer=False, nodes=[name]
            )


def _holds(low: float, high: float, grid: Grid) -> bool:
    """Whether the integers of a quantizer saturate where a clip before it does."""
    least, most = grid.range
    slack = grid.scale / 2
    return low <= least + slack and most - slack <= high


def _attribute(node: NodeProto, name: str, default):
    found = [a for a in node.attribute if a.name == name]
    if not found:
        return default
    return found[0].ints if found[0].ints else found[0].i
