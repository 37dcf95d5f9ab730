"""Times of layers and of whole nets on the CPU in a runtime."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from mmmpq.export.latency.graphs import (
    Work,
    float_graph,
    integer_graph,
    integer_row,
)
from mmmpq.export.onnx.graph import FORMAT
from mmmpq.policy import FLOAT, Precision

INTEGER = Precision(8, 8)
# Operators that compute with integers, by which ONNX Runtime replaces what it fuses.
_INTEGER_OPS = {
    'QLinearConv',
    'ConvInteger',
    'QGemm',
    'QLinearMatMul',
    'MatMulInteger',
    'MatMulIntegerToFloat',
    'DynamicQuantizeMatMul',
}
IN_INTEGERS = (' u8', ' i8')  # how OpenVINO's layers that do end here


@dataclass(frozen=True)
class Timed:
    """Times of one graph.

    Attributes:
        us (float): Median in microseconds.
        low, high (float): Quartiles.
        ops (dict): The operators that are really run, with their numbers.
    """

    us: float
    low: float
    high: float
    ops: Mapping[str, int]

    @property
    def integer(self) -> bool:
        """Whether any of its operators computes with integers."""
        return any(map(in_integers, self.ops))


def in_integers(op: str) -> bool:
    """Whether an operator that is run computes with integers."""
    return op in _INTEGER_OPS or op.endswith(IN_INTEGERS)


class Row(NamedTuple):
    """Microseconds of two layers in 8 bits."""

    apart: float
    in_a_row: float


class Input(NamedTuple):
    """What a graph takes; a side that it leaves open is None."""

    name: str
    shape: list[int | None]
    is_float: bool


class Session:
    """A graph in ONNX Runtime, with random inputs and room for its outputs.

    Args:
        model: A file or a graph.
        threads: Within an operator.
        image: (C, H, W) of the input where the graph leaves it open; default: what
            :func:`.onnx_graph.export_onnx` noted.

    Attributes:
        ops: The operators that are really run, with their numbers.
        integer_inputs: Names of what those read that compute with integers.
        shape: Of the input.

    Raises:
        ValueError: The runtime cannot open it, or its input is not of that shape.
    """

    runtime = 'ONNX Runtime'
    signed: bool | None = None  # whether it wants int8 for weights; None: by processor

    def __init__(
        self,
        model: str | Path | onnx.ModelProto,
        threads: int,
        image: Sequence[int] | None = None,
    ) -> None:
        self.name = str(model) if isinstance(model, (str, Path)) else 'a layer'
        data = self.name
        if isinstance(model, onnx.ModelProto):
            data = model.SerializeToString()
        self.ops: Counter = Counter()
        self.integer_inputs: set[str] = set()
        try:
            first, *others = self._open(data, threads)
        except Exception as error:  # those of a runtime have no class in common
            raise ValueError(
                f'{self.runtime} cannot open {self.name}: {error}'
            ) from error
        option = image
        if image is None:
            noted = self._noted()
            image = json.loads(noted)['input_shape'] if noted else ()
        shape = first.shape
        if None in shape and len(shape) == 1 + len(image):
            shape = [n or m for n, m in zip(shape, (1, *image), strict=True)]
        if others or not first.is_float or None in shape:
            raise ValueError(
                f'{self.name}: found the inputs '
                f'{", ".join(f"{i.name} {i.shape}" for i in (first, *others))}; '
                'accepted is one of float images, with --input-shape C H W'
            )
        if option is not None and shape[1:] != list(option):
            raise ValueError(
                f'--input-shape: found {" ".join(map(str, option))}; the input of '
                f'{self.name} is {first.shape}'
            )
        self.shape = tuple(shape)
        self._bind(first.name, np.random.default_rng(0).random(shape, np.float32))
        self()

    @property
    def integer_ops(self) -> list[str]:
        """Those of ``ops`` that compute with integers."""
        return [op for op in self.ops if in_integers(op)]

    def _open(self, data: str | bytes, threads: int) -> list[Input]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait for work in a loop would take cores from other sessions.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / 'optimized.onnx'
            options.optimized_model_filepath = str(optimized)
            self.session = onnxruntime.InferenceSession(
                data, options, providers=['CPUExecutionProvider']
            )
            nodes = onnx.load(optimized, load_external_data=False).graph.node
        self.ops = Counter(node.op_type for node in nodes)
        integer = [node for node in nodes if in_integers(node.op_type)]
        self.integer_inputs = {name for node in integer for name in node.input}
        return [
            Input(
                i.name,
                [n if isinstance(n, int) else None for n in i.shape],
                i.type == 'tensor(float)',
            )
            for i in self.session.get_inputs()
        ]

    def _noted(self) -> str | None:
        return self.session.get_modelmeta().custom_metadata_map.get(FORMAT)

    def _bind(self, name: str, data: np.ndarray) -> None:
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input(name, data)
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, 'cpu')

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)


def race(
    runs: Sequence[Callable[[], Any]],
    repeats: int,
    warmup: int,
    step: Callable[[int], Any] = lambda done: None,
) -> list[tuple[float, float, float]]:
    """(lower quartile, median, upper quartile) in microseconds of each of ``runs``.

    They take turns, so that what else the machine does meets all of them alike.

    Args:
        runs: Functions.
        repeats: Times that each is measured, at least 2.
        warmup: Times that each runs before.
        step: Called with the number of rounds so far.
    """
    times: list[list[float]] = [[] for _ in runs]
    for i in range(warmup + repeats):
        for run, row in zip(runs, times, strict=True):
            start = time.perf_counter_ns()
            run()
            row.append((time.perf_counter_ns() - start) / 1e3)
        step(i + 1)
    return [tuple(quantiles(row[warmup:], n=4, method='inclusive')) for row in times]


def time_layer(
    work: Work,
    threads: int,
    repeats: int,
    warmup: int,
    session: type[Session] = Session,
) -> dict[Precision, Timed]:
    """A layer's times in float and, if it can be quantized, in 8 bits, for one input.

    They contain what quantizes the input and, of a closed layer, the output, but not
    the call of the runtime: the time of a graph that does nothing is taken off.

    Args:
        session: What the graphs run in.

    Returns:
        Nothing for a layer that ONNX has no operator for.
    """
    graphs = {FLOAT: float_graph(work), INTEGER: integer_graph(work, session.signed)}
    sessions = {p: session(g, threads) for p, g in graphs.items() if g is not None}
    if not sessions:
        return {}
    nothing = session(_nothing(), threads)
    (_, call, _), *times = race([nothing, *sessions.values()], repeats, warmup)
    return {
        precision: Timed(
            *(max(t - call, 0.0) / work.batch for t in (median, low, high)), opened.ops
        )
        for (precision, opened), (low, median, high) in zip(
            sessions.items(), times, strict=True
        )
    }


def time_row(
    first: Work,
    second: Work,
    threads: int,
    repeats: int,
    warmup: int,
    session: type[Session] = Session,
) -> Row | None:
    """The times of two layers in 8 bits, apart and in a row, for one input.

    What quantizes one's output and what quantizes the other's input is needed once in
    a row, and often not at all; or the first is only then fused.

    Returns:
        None if ONNX has no operator for one, or they do not fit.
    """
    graphs = [integer_graph(work, session.signed) for work in (first, second)]
    graphs.append(integer_row(first, second, session.signed))
    if None in graphs or first.batch != second.batch:
        return None
    sessions = [session(graph, threads) for graph in graphs]
    nothing = session(_nothing(), threads)
    times = [t for _, t, _ in race([nothing, *sessions], repeats, warmup)]
    call, a, b, row = times
    return Row((a + b - 2 * call) / first.batch, (row - call) / first.batch)


def _nothing() -> onnx.ModelProto:
    value = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in 'xy'
    ]
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    graph = onnx.helper.make_graph([node], 'nothing', value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid('', 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
