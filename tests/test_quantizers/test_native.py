"""The compiled form against the plain one, and what it does without a compiler."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from mmmpq.quantizers import (
    fake_quantize,
    functional,
    mix_fake_quantize,
    native,
    recomputing,
)

LEVELS = {
    'signed': [(-1, 1), (-3, 3), (-7, 7), (-127, 127)],
    'unsigned': [(0, 3), (0, 15)],
    'float': [None, (-7, 7)],
    'sixteen': [(0, 2**16 - 1), (0, 255)],
    'twelve': [(0, 2**b - 1) for b in (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3)] + [None],
}


def results(x, channels, levels, gradient, offset, dtype=torch.float32, divisors=None):
    """Output and all gradients of a mix with numbers from a seed."""
    torch.manual_seed(1)
    m = len(levels)
    shape = (m,) if channels == 1 else (m, channels, *[1] * (x.dim() - 1))
    small = [torch.rand(shape) * 0.3 + 0.05, torch.softmax(torch.randn(m), 0)]
    if divisors:  # ranges, one of them negative and one too small
        small[0] = torch.rand(m, channels) + 0.05
        small[0][0, 0] *= -1
        small[0][-1, -1] = 1e-9
    if offset:
        small.append(torch.rand(shape) - 0.5)
    leaves = [t.detach().requires_grad_() for t in (x.to(dtype), *small)]
    x, scale, probs, *offset = leaves
    factors = [0.5 + j for j in range(m)]
    out = mix_fake_quantize(
        x,
        scale,
        probs,
        levels,
        factors,
        *offset,
        gradient=gradient,
        divisors=divisors,
    )
    grad = torch.randn(out.shape).to(dtype)
    return out, *torch.autograd.grad(out, leaves, grad)


@pytest.fixture
def plain(monkeypatch):
    """Switches the compiled form off from here on."""
    if native.find_compiler() is None:
        pytest.skip('there is no C++ compiler')
    assert native.library() is not None
    return lambda: monkeypatch.setattr(native, 'takes', lambda *_: False)


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('channels', [1, 6])
@pytest.mark.parametrize('gradient', native.GRADIENTS)
@pytest.mark.parametrize('offset', [False, True])
def test_is_the_plain_form(levels, channels, gradient, offset, plain):
    x = torch.randn(6, 7, 13, 31)  # no multiple of anything
    found = results(x, channels, LEVELS[levels], gradient, offset)
    plain()
    wanted = results(x, channels, LEVELS[levels], gradient, offset)
    torch.testing.assert_close(found[:2], wanted[:2])
    for one, two in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * two.abs().max())


@pytest.mark.parametrize('channels', [1, 6])
@pytest.mark.parametrize('gradient', native.GRADIENTS)
def test_ranges_in_place_of_steps(channels, gradient, plain):
    x = torch.randn(6, 7, 13, 31)
    ranges = dict(divisors=(1.0, 3.0, 7.0, 127.0))
    found = results(x, channels, LEVELS['signed'], gradient, False, **ranges)
    plain()
    wanted = results(x, channels, LEVELS['signed'], gradient, False, **ranges)
    torch.testing.assert_close(found[:2], wanted[:2])
    for one, two in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * two.abs().max())


@pytest.mark.parametrize('layout', ['channels_last', 'sliced', 'expanded', 'scalar'])
@pytest.mark.parametrize('channels', [1, 6])
def test_every_memory_layout(layout, channels, plain):
    x = torch.randn(6, 8, 10, 12)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    elif layout == 'sliced':
        x = x[:, ::2, :, 3:9]
    elif layout == 'expanded':
        x = x[:, :1].expand(6, 4, 10, 12)
    elif channels == 1:
        x = torch.tensor(0.3)
    found = results(x, channels, LEVELS['signed'], 'lsq', False)
    plain()
    wanted = results(x, channels, LEVELS['signed'], 'lsq', False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16(plain):
    x = torch.randn(3, 1000)
    found = results(x, 1, LEVELS['signed'], 'lsq', False, torch.bfloat16)
    plain()
    wanted = results(x, 1, LEVELS['signed'], 'lsq', False, torch.bfloat16)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found[2:], wanted[2:], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nan_and_infinity(dtype):
    x = torch.tensor([float('nan'), float('inf'), -float('inf'), 1.0], dtype=dtype)
    out = fake_quantize(x, torch.tensor(0.5), (-3, 3)).tolist()
    assert out[0] != out[0]
    assert out[1:] == [1.5, -1.5, 1.0]


def test_gradients_do_not_depend_on_threads(plain):
    """Of the compiled form; ``plain`` stays unused, and wants a compiler."""
    x = torch.randn(200_000)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(x, 1, LEVELS['signed'], 'lsq', True))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_recomputing_changes_nothing(kind, monkeypatch):
    shape = (4, 8, 16, 16) if kind == 'conv' else (4, 50, 8)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn((6, 8, 3, 3) if kind == 'conv' else (6, 8)).requires_grad_()
    operation = F.conv2d if kind == 'conv' else F.linear
    s, p = torch.tensor([0.2, 0.1]), torch.tensor([0.4, 0.6])
    made = []
    before = functional._forward
    monkeypatch.setattr(
        functional, '_forward', lambda *args: made.append(1) or before(*args)
    )

    def quantized():
        levels = [(-3, 3), (-7, 7)]
        return [mix_fake_quantize(t, s, p, levels, [1.0, 1.0]) for t in (x, weight)]

    plain = operation(*quantized())
    wanted = torch.autograd.grad(plain.square().sum(), (x, weight))
    assert len(made) == 2
    q = quantized()
    with recomputing(*q):
        out = operation(*q)
    assert torch.equal(out, plain)
    found = torch.autograd.grad(out.square().sum(), (x, weight))
    assert len(made) == 6  # neither was saved
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_recomputing_leaves_other_tensors_alone():
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    with recomputing(x, weight):
        out = F.linear(x, weight)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, weight.detach().sum(0).expand(4, 8))


@pytest.mark.parametrize(
    ('env', 'expected'),
    [
        (dict(MMMPQ_KERNELS='plain'), 'None'),
        (dict(CXX='', PATH=''), 'no C++ compiler is found'),
        (dict(MMMPQ_KERNELS='fast'), "MMMPQ_KERNELS: found 'fast'"),
    ],
)
def test_switch_and_missing_compiler(env, expected, monkeypatch, tmp_path):
    said = ['None']
    monkeypatch.setattr(native, 'print_log', lambda text, **_: said.append(text))
    monkeypatch.setenv('MMMPQ_CACHE', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'ziglang', None)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    try:
        assert native.library.__wrapped__() is None  # the cache holds this process's
    except ValueError as error:
        said.append(str(error))
    assert expected in ' '.join(said)


def test_a_package_compiles_where_the_machine_cannot(monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    package = ModuleType('ziglang')
    package.__spec__ = object()
    monkeypatch.setitem(sys.modules, 'ziglang', package)
    assert native.find_compiler() == [sys.executable, '-m', 'ziglang', 'cc']


CLASSES = ['DEFAULT', 'AVX2', 'AVX512']  # each can do what those before it can


@pytest.mark.parametrize('processor', CLASSES)
def test_every_class_of_processors(processor, plain, monkeypatch):
    capability = torch.backends.cpu.get_cpu_capability
    here = capability()
    if here not in CLASSES or CLASSES.index(processor) > CLASSES.index(here):
        pytest.skip(f'this processor is {here}')
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: processor)
    built = native.library.__wrapped__()
    monkeypatch.setattr(native, 'library', lambda: built)
    x = torch.randn(6, 7, 13, 31)
    for levels in ('signed', 'twelve'):
        found = results(x, 6, LEVELS[levels], 'lsq', True)
        with monkeypatch.context() as without:
            without.setattr(native, 'takes', lambda *_: False)
            wanted = results(x, 6, LEVELS[levels], 'lsq', True)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.skipif(sys.platform != 'linux', reason='torch on Linux has GNU OpenMP')
def test_threads_are_torchs_own(plain):
    """Of the compiled form; ``plain`` stays unused, and wants a compiler."""
    assert native.library().parallel
