"""tools/profile_latency.py: layers and files in ONNX Runtime and OpenVINO."""

import copy
import importlib
import json
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2d
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.cli.flags.common import RUNTIMES
from mmmpq.costs import Budget, Latency, LayerProfile, profile
from mmmpq.costs.feeds import Feed, feeds
from mmmpq.engine import launch
from mmmpq.models import quantize
from mmmpq.policy import FLOAT
from mmmpq.search import SearchSpace, cost_tables

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

from mmmpq.export.latency import bench as latency_bench  # noqa: E402
from mmmpq.export.latency import graphs as latency_graphs  # noqa: E402
from mmmpq.export.latency.bench import (  # noqa: E402
    INTEGER,
    Row,
    Session,
    Timed,
    race,
    time_row,
)
from mmmpq.export.latency.fused import float_layers  # noqa: E402
from mmmpq.export.latency.graphs import Work, works_of  # noqa: E402
from mmmpq.export.latency.runtimes import session_of  # noqa: E402
from mmmpq.export.latency.table import entries, save_table  # noqa: E402

openvino = pytest.mark.skipif(not find_spec('openvino'), reason='no openvino')
ROOT = Path(__file__).resolve().parents[2]
SQUARE = dict(kernel_size=(3, 3), stride=(1, 1), groups=1, input_size=(9, 9))
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('mmmpq.cli.profile_latency')


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return str(path)


class Head(nn.Module):
    """A conv on two levels, and a linear layer on seven rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, padding='same')
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        self.conv(x)
        self.conv(x[..., ::2, ::2])
        return self.fc(x[0, :, 0, :7].T)


def test_work_of_each_size_of_the_inputs():
    model = Head()
    works = [
        work
        for layer in profile(model, (3, 8, 8))
        for work in works_of(layer, model.get_submodule(layer.name))
    ]
    conv = dict(pads=(1, 1, 2, 2), dilation=(1, 1), output_padding=(0, 0))
    shape = 'Conv2d', 3, 4, (4, 4), (1, 1), 1
    assert works == [
        Work(*shape, (8, 8), **conv),
        Work(*shape, (4, 4), **conv),
        Work('Linear', 3, 5, (1,), (1,), 1, (), batch=7),
    ]


@pytest.mark.parametrize(
    'layer, size',
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (9, 8)),
        (nn.Conv2d(4, 6, (3, 5), padding='same', dilation=2), (9, 8)),
        (nn.Conv2d(6, 6, 3, groups=6), (9, 8)),
        (nn.Conv1d(4, 6, 3, padding=2), (9,)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (5, 4)),
        (nn.Linear(4, 6), ()),
        (nn.Linear(4, 6), (3, 2)),
    ],
)
def test_graphs_compute_the_layer(layer, size):
    """ONNX Runtime on the graph, PyTorch on its weights."""
    dense = isinstance(layer, nn.Linear)
    x = torch.randn(1, *size, 4) if dense else torch.randn(1, layer.in_channels, *size)
    model = nn.Sequential(layer)
    graph = latency_graphs.float_graph(
        *works_of(profile(model, x.shape[1:], proposals=1)[0], layer)
    )
    onnx.checker.check_model(graph, full_check=True)
    state = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    weight = torch.tensor(state['weight'])
    with torch.no_grad():
        layer.weight.copy_(weight.T if dense and size else weight)
        layer.bias.zero_()
        wanted = model(x)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (found,) = session.run(None, {'x': x.numpy()})
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_attention_is_four_products():
    graph = latency_graphs.float_graph(
        Work('MultiheadAttention', 8, 8, (1,), (1,), 1, (5,))
    )
    onnx.checker.check_model(graph, full_check=True)
    assert [n.op_type for n in graph.graph.node].count('MatMul') == 4


CONV = Work(
    'Conv2d', 16, 16, **SQUARE, pads=(1, 1, 1, 1), dilation=(1, 1), output_padding=()
)


@pytest.mark.parametrize(
    'work',
    [
        CONV,
        Work('Linear', 16, 8, (1,), (1,), 1, (), 4),
        Work('Linear', 16, 8, (1,), (1,), 1, (5,), 4),
        Work('Linear', 16, 8, (1,), (1,), 1, (), 4, closed=False),
    ],
    ids=['conv', 'linear', 'linear-3d', 'linear-open'],
)
def test_eight_bits_run_on_integers(work):
    times = latency_bench.time_layer(work, threads=1, repeats=3, warmup=1)
    assert list(times) == [FLOAT, INTEGER]
    assert not times[FLOAT].integer
    assert times[INTEGER].integer
    assert all(t.low <= t.us <= t.high for t in times.values())


def test_an_output_that_stays_float_leaves_the_layer_in_float():
    times = latency_bench.time_layer(replace(CONV, closed=False), 1, 2, 0)
    assert not times[INTEGER].integer


def test_layers_of_a_net_that_stay_in_float(tool, config):
    """Convolutions in front of a shortcut's addition."""
    model = tool.build_model(Config.fromfile(config), 'W8A8')
    left = float_layers(model, (3, 32, 32))
    blocks = [f'backbone.layer{i}.{j}' for i in (1, 2) for j in (0, 1)]
    assert {f'{block}.conv2' for block in blocks} <= left
    integer = {f'{block}.conv1' for block in blocks} | {'head.fc'}
    assert integer.isdisjoint(left)


def test_work_of_a_deformable_convolution():
    shape = dict(in_channels=4, out_channels=6, **SQUARE, input_sizes={(9, 9): 1})
    layer = LayerProfile('x', 'DeformConv2d', 1, 1, 1, calls=1, shape=shape)
    assert works_of(layer, DeformConv2d(4, 6, 3)) == [
        Work('DeformConv2d', 4, 6, **SQUARE)
    ]


def test_what_cannot_be_quantized_or_has_no_operator():
    shape = dict(pads=(0,) * 4, dilation=(1, 1), output_padding=(0, 0))
    transposed = Work('ConvTranspose2d', 4, 4, **SQUARE, **shape)
    deformed = Work('DeformConv2d', 4, 4, **SQUARE, **shape)
    whole = Work('MultiheadAttention', 8, 8, (1,), (1,), 1, (5,))
    assert list(latency_bench.time_layer(transposed, 1, 2, 0)) == [FLOAT, INTEGER]
    assert list(latency_bench.time_layer(whole, 1, 2, 0)) == [FLOAT]
    assert latency_bench.time_layer(deformed, 1, 2, 0) == {}


def test_runs_take_turns_and_the_quartiles_are_those_of_the_repeats(monkeypatch):
    clock, order = [0], []
    monkeypatch.setattr(latency_bench.time, 'perf_counter_ns', lambda: clock[0])

    def run(name, *us):
        us = iter(us)

        def go():
            order.append(name)
            clock[0] += next(us) * 1000

        return go

    done = []
    runs = [run('a', 900, 1, 2, 3, 4, 50), run('b', 900, 7, 7, 7, 7, 7)]
    assert race(runs, 5, 1, done.append) == [(2, 3, 4), (7, 7, 7)]
    assert order == ['a', 'b'] * 6
    assert done == [1, 2, 3, 4, 5, 6]


def timed(us, **ops):
    return Timed(us, us, us, ops)


def test_a_table_for_every_width(tmp_path):
    """Below 8 bits as 8 bits, float on either side as float; means of equal shapes."""
    slow = replace(CONV, closed=False)
    table = {
        CONV: {FLOAT: timed(40), INTEGER: timed(12.34567, QLinearConv=1)},  # 3 inputs
        slow: {FLOAT: timed(30), INTEGER: timed(50, Conv=1)},
        Work('Linear', 3, 4, (1,), (1,), 1, ()): {
            FLOAT: timed(1),
            INTEGER: timed(2, Gemm=1),
        },
        Work('ConvTranspose2d', 4, 4, **SQUARE): {FLOAT: timed(5)},
        Work('DeformConv2d', 4, 4, **SQUARE): {},
    }
    inputs = dict.fromkeys(table, 1) | {CONV: 3}
    rows = entries(table, inputs)
    assert len(rows) == 90 + 90 + 1  # 9 widths of weights, 10 of inputs
    rows = {(r['type'], r['w_bits'], r['a_bits']): r for r in rows}
    for bits, us, executed in (
        ((8, 8), 21.76, 'W8A8 and W32A32'),
        ((2, 3), 21.76, 'W8A8 and W32A32'),
        ((4, 16), 37.5, 'W32A32'),
        ((4, 32), 37.5, 'W32A32'),
        ((32, 32), 37.5, 'W32A32'),
    ):
        row = rows[('Conv2d', *bits)]
        assert (row['us'], row['executed_as']) == (us, executed)
    row = rows['Linear', 8, 8]  # not fused, and slower for it
    assert (row['us'], row['executed_as']) == (2, 'W32A32')
    feed = Feed('a', 'b', (9, 9), (9, 9), False, 1.0)
    in_a_row = [  # one of three times the sum goes on in float
        (CONV, CONV, feed, Row(30, 15)),  # half, of twice 12.34567
        (CONV, slow, feed, Row(40, 30)),  # a quarter, of 12.34567 + 50
        (CONV, CONV, replace(feed, inputs=0.5), None),
        (CONV, CONV, replace(feed, summed=True, inputs=2.0), Row(9, 3)),
        (CONV, CONV, replace(feed, summed=True), None),
    ]
    path = save_table(tmp_path / 'table.json', table, inputs, in_a_row, threads=1)
    pair, summed = json.loads(path.read_text())['pairs']
    assert (pair['us'], pair['bits']) == (-11.17, [[1, 8], [1, 8]])
    assert (summed['us'], summed['summed'], pair['summed']) == (-10.97, True, False)
    assert pair['first'] == pair['second']
    assert pair['first']['kernel_size'] == [3, 3]
    assert json.loads(path.read_text())['threads'] == 1
    assert Latency(path).unit == 'us'


def test_layers_of_a_config(tool, config, tmp_path, capsys):
    out = tmp_path / 'table.json'
    few = ['--repeats', '2', '--warmup', '0', '--input-shape', '3', '32', '32']
    tool.main([config, '--out', str(out), *few])
    printed = capsys.readouterr().out
    assert 'sum over the layers: float' in printed
    assert json.loads(out.read_text())['input_shape'] == [3, 32, 32]
    cfg = Config.fromfile(config)
    candidates = ['W2A2', 'W8A8', 'W32A32']
    model = quantize(
        tool.build_model(cfg), candidates=candidates, groups='layer', ends='fixed'
    )
    budget = dict(type='Latency', table=str(out), input_shape=(3, 32, 32))
    layers = profile(model, (3, 32, 32))
    latency = Latency(out)
    by_name = {layer.name: layer for layer in layers}
    space = SearchSpace(model)
    (table,) = cost_tables(model, space, [Budget.build(dict(budget, limit='1 s'))])
    for group, costs in zip(space.groups, table.values, strict=True):
        (name,) = group.layers
        w2, w8, base = costs.tolist()
        assert w2 == w8 == pytest.approx(latency(by_name[name], INTEGER))
        assert base == pytest.approx(latency(by_name[name], FLOAT))
    wanted = sum(latency(layer, FLOAT) for layer in layers)
    assert table.uniform(FLOAT) == pytest.approx(
        wanted
        - sum(
            latency(by_name[n], FLOAT) - latency(by_name[n], p)
            for n, p in space.fixed.items()
        )
    )


def test_two_layers_in_a_row_are_one_graph(monkeypatch):
    """Apart: Q and DQ of each; in a row the first is fused, and Q is needed once."""
    sessions, times = [], iter([(0, t, 0) for t in (1, 31, 41, 53)])

    class Seen(Session):
        def __init__(self, *args):
            super().__init__(*args)
            sessions.append(self)

    monkeypatch.setattr(
        latency_bench, 'race', lambda runs, *_: [next(times) for _ in runs]
    )
    first = replace(CONV, closed=False)
    assert time_row(first, first, 1, 2, 0, Seen) == (30 + 40, 52)
    apart, _, row, _ = sessions
    assert (apart.ops['QuantizeLinear'], row.ops['QuantizeLinear']) == (1, 1)
    assert not apart.ops['QLinearConv'] and row.ops['QLinearConv'] == 1


def test_rows_that_cannot_be_built():
    deformed = replace(CONV, type='DeformConv2d')
    assert time_row(CONV, deformed, 1, 2, 0) is None
    assert time_row(CONV, replace(CONV, batch=2), 1, 2, 0) is None


@pytest.mark.parametrize('target', [[], ['--target', 'onnxruntime']])
def test_pairs_of_a_config(tool, config, tmp_path, capsys, target):
    out = tmp_path / 'table.json'
    few = ['--repeats', '2', '--warmup', '0', '--input-shape', '3', '32', '32']
    tool.main([config, '--out', str(out), *few, *target])
    assert 'in a row' in capsys.readouterr().out
    model = tool.build_model(Config.fromfile(config))
    layers, handed = profile(model, (3, 32, 32)), feeds(model, (3, 32, 32))
    latency = Latency(out)
    by_name = {layer.name: layer for layer in layers}
    saved = {
        (f.first, f.second)
        for f in handed
        if latency.between(f, by_name[f.first], by_name[f.second], INTEGER, INTEGER)
    }
    block = ('backbone.layer1.0.conv1', 'backbone.layer1.0.conv2')
    summed = ('backbone.layer1.0.conv2', 'backbone.layer1.1.conv1')
    assert block in saved
    # Without a target sums are float, and so is what goes into them.
    assert (summed in saved) == bool(target)
    assert latency.between(handed[0], *[by_name[n] for n in block], INTEGER, FLOAT) == 0


def test_the_input_is_the_padded_image(tool, tmp_path, monkeypatch):
    """The first layer of YOLOX reads 12 channels of half the size."""
    from mmmpq.export.latency import fused as latency_fused

    path, seen = tmp_path / 'config.py', []
    path.write_text(
        "_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'\n"
        'model = dict(backbone=dict(widen_factor=0.125),\n'
        '    neck=dict(in_channels=[32, 64, 128], out_channels=16),\n'
        '    bbox_head=dict(in_channels=16, feat_channels=16))\n'
    )
    monkeypatch.setattr(latency_bench, 'time_layer', lambda *args: {})
    monkeypatch.setattr(latency_bench, 'time_row', lambda *args: None)
    monkeypatch.setattr(
        latency_fused, 'float_layers', lambda net, shape, _: seen.append(shape) or set()
    )
    out = tmp_path / 'table.json'
    tool.main([str(path), '--out', str(out), '--input-shape', '3', '60', '90'])
    assert seen == [(3, 64, 96)]
    assert json.loads(out.read_text())['input_shape'] == [3, 64, 96]


def graph_file(path, *nodes, shape=('n', 3, 'h', 8)):
    value = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape)
        for n in ('x', 'y')
    ]
    graph = onnx.helper.make_graph(list(nodes), 'net', value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid('', 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return str(path)


def test_whole_files(tool, config, tmp_path, capsys):
    a = graph_file(tmp_path / 'a.onnx', onnx.helper.make_node('Relu', ['x'], ['y']))
    b = graph_file(tmp_path / 'b.onnx', onnx.helper.make_node('Exp', ['x'], ['y']))
    out = tmp_path / 'times.json'
    few = ['--repeats', '3', '--warmup', '1', '--input-shape', '3', '6', '8']
    tool.main([config, '--end-to-end', a, b, '--out', str(out), *few])
    found = json.loads(out.read_text())
    assert [f['operators'] for f in found['files']] == [{'Relu': 1}, {'Exp': 1}]
    assert all(f['input_shape'] == [1, 3, 6, 8] for f in found['files'])
    assert 'a.onnx' in capsys.readouterr().out


def test_an_input_that_is_left_open(tmp_path):
    path = graph_file(tmp_path / 'a.onnx', onnx.helper.make_node('Relu', ['x'], ['y']))
    with pytest.raises(ValueError, match=r'--input-shape C H W'):
        Session(path, threads=1)
    with pytest.raises(ValueError, match=r'--input-shape: found 3 6 9; .*a\.onnx is'):
        Session(path, threads=1, image=(3, 6, 9))
    (tmp_path / 'b.onnx').write_bytes(b'no graph')
    with pytest.raises(ValueError, match=r'cannot open .*b\.onnx'):
        Session(tmp_path / 'b.onnx', threads=1)


def test_an_input_of_a_fixed_size(tmp_path):
    relu = onnx.helper.make_node('Relu', ['x'], ['y'])
    path = graph_file(tmp_path / 'a.onnx', relu, shape=(1, 3, 6, 8))
    assert Session(path, threads=1, image=(3, 6, 8)).shape == (1, 3, 6, 8)
    with pytest.raises(ValueError, match=r'found 3 12 8; .* is \[1, 3, 6, 8\]'):
        Session(path, threads=1, image=(3, 12, 8))


@pytest.mark.parametrize(
    'package, extra',
    [('onnx', 'deploy'), ('onnxruntime', 'deploy'), ('openvino', 'openvino')],
)
def test_without_the_extra(tool, config, monkeypatch, capsys, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    runtime = package if package in RUNTIMES else 'onnxruntime'
    with pytest.raises(SystemExit) as end:
        launch.run(lambda: tool.main([config, '--runtime', runtime]))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f'pip install "mmmpq[{extra}]"' in error
    assert len(error.splitlines()) == 1


@openvino
def test_layers_in_openvino():
    """In integers with a float output, too: only what changes shapes is in float."""
    session = session_of('openvino')
    works = CONV, replace(CONV, closed=False), Work('Linear', 8, 4, (1,), (1,), 1, ())
    for work in works:
        times = latency_bench.time_layer(work, 1, 2, 0, session)
        assert times[INTEGER].integer and not times[FLOAT].integer
        assert times[FLOAT].us >= 0
    row = session(latency_graphs.integer_row(CONV, CONV, signed=True), 1)
    assert row.ops['Convolution u8'] == 2 and row.shape == (1, 16, 9, 9)
    assert {'weight_q', 'weight_behind_q'} <= row.integer_inputs


@openvino
def test_a_process_that_has_used_openvino_handles_signals():
    """As with a data loader's worker that ends; sessions may go in any order."""
    sessions = [
        session_of('openvino')(latency_graphs.integer_row(CONV, CONV, signed=True), 1)
        for _ in range(3)
    ]
    while sessions:
        del sessions[0]
    child = os.fork()
    if not child:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@openvino
def test_openvino_tells_nobody_that_it_is_imported():
    session_of('openvino')(latency_graphs.integer_graph(CONV, True), 1)
    utils = importlib.import_module('openvino.tools.ovc.telemetry_utils')
    assert utils.tm.__name__ == 'openvino.tools.ovc.telemetry_stub'
    assert 'openvino_telemetry' not in sys.modules


@openvino
def test_a_config_in_openvino(tool, config, tmp_path, capsys):
    out = tmp_path / 'table.json'
    few = ['--repeats', '2', '--warmup', '0', '--input-shape', '3', '32', '32']
    tool.main([config, '--out', str(out), '--runtime', 'openvino', *few])
    table = json.loads(out.read_text())
    assert table['runtime'].startswith('openvino ') and table['pairs']
    kinds = {row['executed_as'] for row in table['entries'] if row['a_bits'] <= 8}
    assert 'W8A8' in kinds
    init_default_scope('mmpretrain')
    model = quantize(MODELS.build(Config.fromfile(config).model), policy='W8A8')
    for runtime in ('openvino', 'onnxruntime'):
        left = float_layers(copy.deepcopy(model), (3, 32, 32), runtime)
        assert bool(left) == (runtime == 'onnxruntime')
    assert 'backbone.layer1.0.conv1' not in left


@openvino
def test_a_file_in_openvino(tmp_path):
    session = session_of('openvino')
    relu = onnx.helper.make_node('Relu', ['x'], ['y'])
    path = graph_file(tmp_path / 'a.onnx', relu)
    with pytest.raises(ValueError, match='with --input-shape C H W'):
        session(path, 1)
    opened = session(path, 1, (3, 6, 8))
    assert opened.shape == (1, 3, 6, 8) and not opened.integer_inputs
    (tmp_path / 'b.onnx').write_bytes(b'no graph')
    with pytest.raises(ValueError, match=r'OpenVINO cannot open .*b\.onnx'):
        session(tmp_path / 'b.onnx', 1)


def test_flags_that_make_no_sense(tool, config, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args([config, '--repeats', '1'])
    assert 'accepted are ints from 2' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.parse_args([config, '--target', 'openvino'])
    assert (
        'accepted with --runtime onnxruntime is onnxruntime' in capsys.readouterr().err
    )
    with pytest.raises(FileNotFoundError, match='--end-to-end: found no file'):
        tool.main([config, '--end-to-end', 'absent.onnx'])
