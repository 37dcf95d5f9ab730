"""Q_w and Q_a of BP-NAS, value by value."""

import pytest
import torch

from mmmpq.quantizers import LinearQuantizer, LSQQuantizer


def q_w(x, a, b):
    n = 2 ** (b - 1) - 1
    return (x.clamp(-a, a) / a * n).round() * a / n


def q_a(x, a, b):
    n = 2**b - 1
    return (torch.minimum(x.relu(), a) / a * n).round() * a / n


@pytest.mark.parametrize('bits', range(2, 9))
def test_weights(bits):
    x = torch.randn(200)
    quantizer = LinearQuantizer((bits,), 'weight')
    quantizer.calibrate(x)
    torch.testing.assert_close(quantizer(x, bits), q_w(x, quantizer.clip()[0, 0], bits))


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('signed', [False, True])
def test_activations(bits, signed):
    x = torch.randn(500) if signed else torch.randn(500).relu()
    quantizer = LinearQuantizer((bits,), 'activation')
    quantizer.calibrate(x)
    formula = q_w if signed else q_a
    a = quantizer.clip()[0, 0]
    torch.testing.assert_close(quantizer(x, bits), formula(x, a, bits))
    assert int(quantizer.signed) == signed


def test_by_hand():
    quantizer = LinearQuantizer((3,), 'weight')
    quantizer.set_sign(True)
    with torch.no_grad():
        quantizer.range.fill_(1.5)  # n = 3, step 0.5
    x = torch.tensor([-9.0, -1.5, -0.74, -0.26, -0.2, 0.0, 0.3, 0.76, 1.2, 1.3])
    wanted = torch.tensor([-1.5, -1.5, -0.5, -0.5, 0.0, 0.0, 0.5, 1.0, 1.0, 1.5])
    assert torch.equal(quantizer(x, 3), wanted)


def test_one_range_per_width_and_channel():
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([1, 2, 4, 8.0])[:, None, None, None]
    quantizer = LinearQuantizer((2, 4), 'weight', per_channel=True, channels=4)
    quantizer.calibrate(weight)
    assert quantizer.range.shape == (2, 4)
    for i, bits in enumerate((2, 4)):
        out = quantizer(weight, bits)
        for c in range(4):
            wanted = q_w(weight[c], quantizer.clip()[i, c], bits)
            torch.testing.assert_close(out[c], wanted)


@pytest.mark.parametrize('per_channel', [False, True])
def test_mix_is_the_sum(per_channel):
    weight = torch.randn(4, 3, 3, 3)
    quantizer = LinearQuantizer(
        (2, 4, 32), 'weight', per_channel=per_channel, channels=4
    )
    quantizer.calibrate(weight)
    probs = torch.tensor([0.5, 0.2, 0.3])
    wanted = sum(
        p * quantizer(weight, b) for p, b in zip(probs, (2, 4, 32), strict=True)
    )
    torch.testing.assert_close(quantizer.mix(weight, (2, 4, 32), probs), wanted)
    part = quantizer.mix(weight, (32, 2), probs[:2])
    wanted = 0.5 * weight + 0.2 * quantizer(weight, 2)
    torch.testing.assert_close(part, wanted)


def test_gradient_of_the_range():
    """Σ (Q(x) - x) / a inside, sign(x) outside, times min(n, 7)^1.5 / sqrt(numel), is
    that of a; with a = r u it is that of r times u, over u²."""
    for bits, n in (3, 3), (8, 127):
        x = torch.randn(100)
        quantizer = LinearQuantizer((bits,), 'weight')
        quantizer.calibrate(x)
        quantizer(x, bits).sum().backward()
        a = quantizer.clip()[0, 0]
        assert 0.7 < quantizer.range.item() < 1.42
        v = x / a
        inside = (v.clamp(-1, 1) * n).round() / n - v
        wanted = torch.where(v.abs() <= 1, inside, v.sign()).sum()
        wanted *= min(n, 7) ** 1.5 / 100**0.5 / quantizer.unit[0]
        torch.testing.assert_close(quantizer.range.grad[0, 0], wanted)


@pytest.mark.parametrize(('name', 'options'), [('SGD', {}), ('Adam', dict(eps=1e-30))])
def test_training_is_the_same_at_any_scale(name, options):
    """A tensor 1024 times as large has ranges 1024 times as large."""
    found = []
    x = torch.randn(500)
    for scale in (1.0, 1024.0):
        quantizer = LinearQuantizer((3,), 'weight')
        quantizer.calibrate(scale * x)
        optimizer = getattr(torch.optim, name)(
            quantizer.parameters(), lr=0.01, **options
        )
        for _ in range(20):
            optimizer.zero_grad()
            # The loss of a net that does not care for the scale of its weights.
            (quantizer(scale * x, 3) / scale - 1.5 * x).abs().sum().backward()
            if name == 'SGD':  # as such a net would: its own a moves in proportion
                quantizer.range.grad *= scale**2
            optimizer.step()
        found.append(quantizer.clip().item() / scale)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_checkpoint_of_before_has_ranges_without_a_unit():
    quantizer = LinearQuantizer((2, 4), 'weight')
    x = torch.randn(100)
    quantizer.calibrate(x)
    state = quantizer.state_dict()
    old = {k: v for k, v in state.items() if k != 'unit'}
    old['range'] = quantizer.clip()
    other = LinearQuantizer((2, 4), 'weight')
    other.load_state_dict(old)
    torch.testing.assert_close(other(x, 4), quantizer(x, 4))


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_all_levels(bits):
    quantizer = LinearQuantizer((bits,), 'weight', all_levels=True)
    x = torch.linspace(-1, 1, 999)
    quantizer.calibrate(x)
    out = quantizer(x, bits).detach()
    a = quantizer.clip()[0, 0]
    n = 2 ** (bits - 1) - 0.5 * (bits <= 3)
    zero = 0.5 * (bits <= 3)
    wanted = ((x.clamp(-a, a) * n / a + zero).round() - zero) * a / n
    wanted = wanted if bits <= 3 else q_w(x, a, bits)
    torch.testing.assert_close(out, wanted)
    assert len(out.unique()) == (2**bits if bits <= 3 else 2**bits - 1)


def test_scale_clip_of_weights_follows_the_tensor():
    quantizer = LinearQuantizer((2, 4), 'weight', range='scale_clip')
    assert quantizer.calibrated
    assert not list(quantizer.parameters())
    for scale in (1.0, 3.0):
        x = torch.randn(300) * scale
        torch.testing.assert_close(quantizer(x, 4), q_w(x, 2 * x.abs().mean(), 4))


def test_scale_clip_of_activations_is_a_slow_average():
    quantizer = LinearQuantizer(
        (4,), 'activation', range='scale_clip', clip_ratio=3.0, momentum=0.1
    )
    x = torch.rand(100)
    quantizer.calibrate(x)
    torch.testing.assert_close(quantizer.range.squeeze(), 3 * x.mean())
    quantizer.train()
    quantizer(2 * x, 4)
    torch.testing.assert_close(quantizer.range.squeeze(), 3 * x.mean() * 1.1)
    quantizer.eval()
    out = quantizer(5 * x, 4)
    torch.testing.assert_close(quantizer.range.squeeze(), 3 * x.mean() * 1.1)
    torch.testing.assert_close(out, q_a(5 * x, quantizer.range.squeeze(), 4))


def test_calibrates_on_the_first_batch_and_not_on_an_empty_one():
    quantizer = LinearQuantizer((4,), 'activation')
    assert quantizer(torch.zeros(0, 3), 4).shape == (0, 3)
    assert not quantizer.calibrated
    quantizer(torch.rand(10), 4)
    assert quantizer.calibrated
    assert not int(quantizer.signed)


def test_sign_travels_with_the_state():
    quantizer = LinearQuantizer((4,), 'activation')
    quantizer.calibrate(torch.rand(10))
    other = LinearQuantizer((4,), 'activation')
    other.load_state_dict(quantizer.state_dict())
    assert other.calibrated
    assert other.levels(4) == (0, 15)


def test_select_keeps_one_width():
    quantizer = LinearQuantizer((2, 4, 8), 'weight')
    x = torch.randn(50)
    quantizer.calibrate(x)
    before = quantizer(x, 4)
    quantizer.select(4)
    assert quantizer.range.shape == (1, 1)
    assert torch.equal(quantizer(x, 4), before)


@pytest.mark.parametrize('bits', [(32,), (4, 32)])
def test_nothing_to_train_in_a_float_layer(bits):
    """DDP waits for the gradient of every parameter that asks for one."""
    quantizer = LinearQuantizer(bits, 'weight')
    assert quantizer.range.requires_grad == (len(bits) > 1)
    quantizer.select(32)
    assert not quantizer.range.requires_grad


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bits=(1, 4)), 'at least 2 bits; found 1'),
        (dict(target='bias'), "target: found 'bias'"),
        (dict(range='learnt'), "range: found 'learnt'.*learned.*scale_clip"),
        (dict(clip_ratio=0), 'clip_ratio: found 0'),
        (dict(per_channel=True, target='activation'), 'per_channel.*activation'),
        (dict(per_channel=True, range='scale_clip'), 'per_channel.*scale_clip'),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        LinearQuantizer(**{**dict(bits=(4,), target='weight'), **changes})


@pytest.mark.parametrize('kind', [LinearQuantizer, LSQQuantizer])
@pytest.mark.parametrize('channels', [1, 4])
def test_weights_that_start_at_zero_can_leave_it(kind, channels):
    weight = torch.zeros(4, 25, requires_grad=True)
    quantizer = kind((4,), 'weight', per_channel=channels > 1, channels=4)
    assert not quantizer(weight, 4).any()
    assert quantizer.calibrated
    torch.nn.init.uniform_(weight, -0.18, 0.18)  # 1 / sqrt(25) = 0.2
    out = quantizer(weight, 4)
    assert (out - weight).abs().max() < 0.05
    out.sum().backward()
    assert (weight.grad == 1).float().mean() > 0.7


@pytest.mark.parametrize('kind', [LinearQuantizer, LSQQuantizer])
def test_activations_that_are_zero_tell_nothing(kind):
    quantizer = kind((4,), 'activation')
    assert not quantizer(torch.zeros(3, 5), 4).any()
    assert not quantizer.calibrated
    quantizer(torch.rand(3, 5), 4)
    assert quantizer.levels(4) == (0, 15)
