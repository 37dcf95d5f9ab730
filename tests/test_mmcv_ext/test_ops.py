"""The operators against their definitions, and where a CPU has no compiled ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import ops
from torch.autograd import gradcheck

from mmmpq import mmcv_ext

seeds = st.integers(0, 10**6)


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return inter / (sum(areas) - inter)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, n=st.integers(0, 25), offset=st.sampled_from([0, 1]))
def test_nms_by_its_definition(seed, n, offset):
    torch.manual_seed(seed)
    low = torch.randint(0, 8, (n, 2))
    boxes = torch.cat([low, low + torch.randint(1, 8, (n, 2))], 1).double()
    scores = torch.randint(0, 6, (n,)).float()  # ties: the first is better
    kept = []
    for i in sorted(range(n), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j], offset) <= 0.4 for j in kept):
            kept.append(i)
    assert mmcv_ext.nms(boxes, scores, 0.4, offset).tolist() == kept
    dets = torch.cat([boxes.float(), scores[:, None]], 1)
    groups = mmcv_ext.nms_match(dets, 1.0)  # the same boxes alone
    assert sorted(i for group in groups for i in group) == list(range(n))
    assert all((boxes[g] == boxes[g[0]]).all() for g in groups)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_formats(dtype):
    """Half precision on a CPU is that of float32, rounded."""
    close = (
        dict(rtol=1e-4, atol=1e-4)
        if dtype == torch.float64
        else dict(rtol=None, atol=None)
    )
    x = torch.randn(1, 4, 6, 6).to(dtype)
    rois = torch.tensor([[0, 1, 1, 4, 5]]).to(dtype)
    exact = ops.roi_align(x.float(), rois.float(), 2)
    found = ops.roi_align(x, rois, 2)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype), **close)
    offset = torch.randn(1, 18, 6, 6).to(dtype)
    weight = torch.randn(3, 4, 3, 3).to(dtype)
    exact = ops.deform_conv2d(x.float(), offset.float(), weight.float(), 1, 1)
    found = ops.deform_conv2d(x, offset, weight, 1, 1)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype), **close)
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1.5]]).to(dtype)
    dets, keep = ops.nms(boxes, torch.tensor([0.5, 0.75]).to(dtype), 0.5)
    assert keep.tolist() == [1] and dets.dtype == dtype


def test_under_autocast():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    rois = torch.tensor([[0, 0, 0, 7, 7.0], [1, 2, 2, 6, 5.0]])
    layer = ops.ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    with torch.autocast('cpu', torch.bfloat16):
        y = ops.roi_align(layer(x), rois, 3)
    y.float().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
    assert layer.weight.grad.any()


def test_gradients_by_finite_differences():
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.2, 4.1, 3.7], [0, 1, 2, 3, 4.5]]).double()
    assert gradcheck(lambda x: ops.roi_align(x, rois, 2, 1.0, 0, 'avg', True), x)
    assert gradcheck(lambda x: ops.roi_align(x, rois, 2, 1.0, 2, 'max', True), x)
    assert gradcheck(lambda x: ops.roi_pool(x, rois, 2, 1.0), x)
    masks = torch.randn(1, 18, 10, 10, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, m: ops.carafe(x, m, 3, 2, 2), (x, masks))
    logits = torch.randn(5, 3, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 0, 3])
    weight = torch.tensor([0.5, 2.0, 1.5]).double()
    for gamma in (1.0, 2.0, 2.5):
        slope = torch.zeros_like(logits)
        mmcv_ext.sigmoid_focal_loss_backward(logits, target, weight, slope, gamma, 0.3)
        sides = []
        for shift in (1e-3, -1e-3):
            loss = torch.zeros_like(logits)
            mmcv_ext.sigmoid_focal_loss_forward(
                logits + shift, target, weight, loss, gamma, 0.3
            )
            sides.append(loss)
        torch.testing.assert_close(
            slope, (sides[0] - sides[1]) / 2e-3, rtol=1e-3, atol=1e-3
        )


@settings(deadline=None, max_examples=30)
@given(seed=seeds, scale=st.sampled_from([0.25, 0.5, 1.0]), size=st.integers(1, 4))
def test_roi_pool_by_its_definition(seed, scale, size):
    torch.manual_seed(seed)
    x = torch.randint(-3, 4, (2, 2, 6, 7)).float()  # ties, negative maxima
    corner = torch.rand(3, 2) * 20 - 4
    rois = torch.cat([torch.randint(0, 2, (3, 1)), corner, corner], 1)
    rois[:, 3:] += torch.rand(3, 2) * 12 - 2
    x.requires_grad_()
    y = ops.roi_pool(x, rois, size, scale)
    grad = torch.zeros_like(x)
    for k, (batch, x1, y1, x2, y2) in enumerate(rois):
        low = torch.stack([y1, x1]) * scale
        step = (torch.stack([y2, x2]) + 1) * scale - low
        empty = bool((step <= 0).any())
        step = step / size
        for i in range(size):
            for j in range(size):
                at = torch.tensor([i, j])
                limit = torch.tensor([6, 7])
                first = (at * step + low).floor().long().clamp(min=0).minimum(limit)
                end = ((at + 1) * step + low).ceil().long().clamp(min=0).minimum(limit)
                for c in range(2):
                    cell = x[int(batch), c, first[0] : end[0], first[1] : end[1]]
                    if empty or not cell.numel():
                        assert y[k, c, i, j] == 0
                        grad[int(batch), c, 0, 0] += 1 if empty else 0
                        continue
                    assert y[k, c, i, j] == cell.max()
                    place = int(cell.argmax())  # of ties the first
                    row, column = divmod(place, cell.shape[1])
                    grad[int(batch), c, first[0] + row, first[1] + column] += 1
    y.sum().backward()
    assert torch.equal(x.grad, grad)


def sigmoid_focal(logits, target, gamma, alpha, weight):
    """Equation 5 of the paper, class by class."""
    p = logits.double().sigmoid()
    loss = torch.empty_like(p)
    for n in range(len(p)):
        factor = weight[target[n]] if target[n] < p.shape[1] else 1
        for c in range(p.shape[1]):
            there = bool(target[n] == c)
            pt = p[n, c] if there else 1 - p[n, c]
            share = alpha if there else 1 - alpha
            loss[n, c] = -share * (1 - pt) ** gamma * pt.log() * factor
    return loss


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('gamma', [0.0, 1.5, 2.0])
def test_sigmoid_focal_loss(gamma, reduction):
    logits = (torch.randn(6, 4) * 3).requires_grad_()
    target = torch.tensor([0, 3, 4, 4, 1, 2])  # 4: background
    weight = torch.tensor([1.0, 0.5, 2.0, 3.0])
    exact = sigmoid_focal(logits, target, gamma, 0.25, weight)
    if reduction != 'none':  # mmcv's mean is over rows
        exact = exact.sum() / (6 if reduction == 'mean' else 1)
    found = ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, reduction)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(exact.sum(), logits)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


def test_sigmoid_focal_loss_of_certain_logits():
    """A logarithm of 0 is that of the smallest float32."""
    target = torch.tensor([1])
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    log = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss, torch.tensor([[0.75 * log, 0.25 * log]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25]]))


@pytest.mark.parametrize('gamma', [1.0, 2.0, 2.5])
def test_softmax_focal_loss(gamma):
    logits = torch.randn(6, 4, requires_grad=True)
    target = torch.tensor([0, 3, -1, 2, 1, 2])  # -1: counts nothing
    weight = torch.tensor([1.0, 0.5, 2.0, 3.0])
    p = logits.double().softmax(1)
    p = p[torch.arange(6), target.clamp(min=0)]
    factor = weight[target.clamp(min=0)] * (target >= 0)
    exact = (-0.25 * (1 - p) ** gamma * p.log() * factor).sum() / 6
    found = ops.softmax_focal_loss(logits, target, gamma, 0.25, weight, 'mean')
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(exact, logits)
    (grad,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('points', [1, 4])
def test_multi_scale_deformable_attention(points):
    """mmcv's own form for CPUs, which shares no code with what GPUs call."""
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 3, 8, requires_grad=True)
    places = (torch.rand(2, 7, 3, 2, points, 2) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 7, 3, 2, points, requires_grad=True)
    inputs = value, places, weights
    exact = ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
        value, shapes, places, weights
    )
    start = torch.tensor([0, 20])
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    found = attend(value, shapes, start, places, weights, 64)
    torch.testing.assert_close(found, exact)
    factors = torch.randn_like(exact)
    expected = torch.autograd.grad((exact * factors).sum(), inputs)
    for one, two in zip(
        torch.autograd.grad((found * factors).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kernel, padding', [(1, 0), (3, 1), (5, 2)])
@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
def test_masked_convolution(kernel, padding, share):
    layer = ops.MaskedConv2d(3, 4, kernel, padding=padding)
    x = torch.randn(1, 3, 6, 7)
    mask = (torch.rand(1, 6, 7) < share).float()
    with torch.no_grad():
        found = layer(x, mask)
        exact = F.conv2d(x, layer.weight, layer.bias, padding=padding) * mask
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize('kernel, groups, scale', [(3, 1, 2), (5, 2, 2), (3, 4, 3)])
def test_carafe(kernel, groups, scale):
    x = torch.randn(2, 4, 3, 5)
    masks = torch.rand(2, groups * kernel**2, 3 * scale, 5 * scale)
    windows = F.unfold(x, kernel, padding=kernel // 2).view(2, 4, kernel**2, 3, 5)
    windows = windows.repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    kernels = masks.view(2, groups, kernel**2, 3 * scale, 5 * scale)
    exact = (windows * kernels.repeat_interleave(4 // groups, 1)).sum(2)
    torch.testing.assert_close(ops.carafe(x, masks, kernel, groups, scale), exact)
    torch.testing.assert_close(ops.carafe_naive(x, masks, kernel, groups, scale), exact)


def test_deformable_convolution_learns_its_weight_alone():
    x, offset = torch.randn(1, 2, 4, 4), torch.randn(1, 18, 4, 4)
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    (alone,) = torch.autograd.grad(
        ops.deform_conv2d(x, offset, weight, 1, 1).sum(), weight
    )
    y = ops.deform_conv2d(x.requires_grad_(), offset, weight, 1, 1).sum()
    for _ in range(2):  # a graph that is used twice
        (together,) = torch.autograd.grad(y, weight, retain_graph=True)
        assert torch.equal(alone, together)


def test_channels_last_with_offsets_of_a_larger_map():
    """As DyHead gives them: gradients lie where the numbers were read."""
    sizes = dict(x=(2, 4, 4, 5), offset=(2, 18, 8, 10), mask=(2, 9, 8, 10))
    inputs = {k: torch.randn(v) for k, v in sizes.items()}
    weight, bias = torch.randn(3, 4, 3, 3), torch.randn(3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [t.to(memory_format=layout).requires_grad_() for t in inputs.values()]
        y = ops.modulated_deform_conv2d(*leaves, weight, bias, 1, 1, 1, 1, 1)
        found.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
        assert one.any()


def test_offsets_of_zero_are_a_convolution():
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 3)
    y = ops.deform_conv2d(x, torch.zeros(2, 18, 5, 6), weight, 1, 1, 1, 2)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1, groups=2))


def test_an_operator_that_is_not_there_is_named():
    with pytest.raises(NotImplementedError) as error:
        ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)
    message = str(error.value)
    assert 'mmcv._ext.nms_rotated' in message
    assert 'MMCV_WITH_OPS=1' in message and '\n' not in message
    assert not hasattr(mmcv_ext, '_nothing')
