"""Tables of measured times."""

from types import SimpleNamespace

from rich.console import Console

from mmmpq.policy import FLOAT, Precision
from mmmpq.visualization.latency import file_table, kernels, layer_table


def text(table):
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def timed(us, integer=False):
    return SimpleNamespace(us=us, integer=integer)


def test_layers():
    conv = SimpleNamespace(
        type='Conv2d', in_channels=3, out_channels=8, kernel_size=(3, 5), stride=(2, 2)
    )
    conv.input_size = 16, 8
    times = {FLOAT: timed(30.0), Precision(8, 8): timed(20.0, integer=True)}
    rows = [
        (conv, ['a', 'b', 'c'], times),
        (conv, ['d'], {FLOAT: timed(30.0)}),
        (conv, ['e'], {}),
    ]
    *_, first, second, _, _ = text(layer_table(rows)).split('\n')
    for cell in 'a + 2', '3 → 8, 3×5 / 2', '16×8', '30 µs', '1.50x', 'integers':
        assert cell in first
    assert 'd' in second and 'stays float' in second


def test_files(tmp_path):
    sessions = []
    for name, ops in ('a', dict(Conv=2, Relu=1)), ('b', dict(QLinearConv=2, Add=1)):
        (tmp_path / name).write_bytes(b'x' * 100)
        sessions.append(SimpleNamespace(name=str(tmp_path / name), ops=ops))
    said = text(file_table(sessions, [(1.0, 2.0, 3.0), (0.5, 1.0, 1.5)]))
    assert '2.00x' in said and '2 Conv' in said and '2 QLinearConv' in said
    assert 'Relu' not in said and '100 B' in said
    assert kernels(dict(QGemm=1, Clip=3, MatMulNBits=2)) == dict(MatMulNBits=2, QGemm=1)
