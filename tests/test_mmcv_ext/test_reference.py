"""The operators against what a compiled mmcv gave for the same inputs.

``reference.safetensors`` holds inputs and results of every case. With a compiled mmcv,
``PYTHONPATH=. python tests/test_mmcv_ext/test_reference.py`` writes it anew.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

import mmmpq  # noqa: F401  finds mmcv._ext

REFERENCE = Path(__file__).with_name('reference.safetensors')


def boxes(n, size=32, integers=False):
    """Boxes in clusters, so that many overlap; some without an area."""
    centre = torch.rand(max(n // 4, 1), 2) * size
    centre = centre.repeat(7, 1)[:n] + torch.randn(n, 2) * 3
    extent = torch.rand(n, 2) * size / 2
    found = torch.cat([centre - extent / 2, centre + extent / 2], 1)
    found[::11, 2] = found[::11, 0]
    return found.round() if integers else found


def rois(n, size, batch):
    """RoIs in and partly outside of an image, one far outside, one a point."""
    found = torch.cat([torch.arange(n)[:, None] % batch, boxes(n, size).abs()], 1)
    if n > 2:
        low, high = found[:, 1:3].clone(), found[:, 3:].clone()
        found[:, 1:3], found[:, 3:] = torch.minimum(low, high), torch.maximum(low, high)
        found[1, 1:] = torch.tensor([3 * size, 3 * size, 4 * size, 4 * size])
        found[2, 3:] = found[2, 1:3]
    return found


def nms_cases():
    for n, offset, integers in product((0, 1, 7, 60), (0, 1), (False, True)):
        # a compiled mmcv leaves the order of equal scores to an unstable sort
        scores = torch.randperm(n) / max(n, 1)
        tensors = dict(boxes=boxes(n, integers=integers), scores=scores)
        for threshold in (0.3, 0.5, 0.6):
            yield 'nms', tensors, dict(iou_threshold=threshold, offset=offset)
        if n:
            yield 'nms_match', tensors, dict(iou_threshold=0.5)
        if integers:
            tensors = dict(tensors, scores=(scores * 8).round() / 8)
        for method in ('naive', 'linear', 'gaussian'):
            args = dict(iou_threshold=0.3, method=method, offset=offset, min_score=0.05)
            yield 'soft_nms', tensors, args
    tensors = dict(boxes=boxes(60), scores=torch.rand(60))
    yield 'nms', tensors, dict(iou_threshold=0.5, score_threshold=0.4, max_num=9)
    tensors['idxs'] = torch.randint(0, 4, (60,))
    for kind, agnostic in product(('nms', 'soft_nms'), (False, True)):
        for extra in (dict(), dict(split_thr=10), dict(split_thr=10, max_num=8)):
            cfg = dict(type=kind, iou_threshold=0.5, **extra)
            yield 'batched_nms', tensors, dict(nms_cfg=cfg, class_agnostic=agnostic)


def roi_align_cases():
    for dtype, mode, aligned, ratio in product(
        ('float32', 'float64'), ('avg', 'max'), (False, True), (0, 1, 2)
    ):
        for n in (0, 6):
            tensors = dict(x=torch.randn(2, 3, 9, 11), rois=rois(n, 40, 2))
            args = dict(output_size=(3, 2), spatial_scale=0.25, sampling_ratio=ratio)
            yield (
                'roi_align',
                {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()},
                dict(args, pool_mode=mode, aligned=aligned),
            )


def deform_cases():
    for dtype, (kernel, stride, padding, dilation, groups, deform) in product(
        ('float32', 'float64'),
        (
            (3, 1, 1, 1, 1, 1),
            (3, 2, 1, 1, 2, 1),
            (3, 1, 2, 2, 1, 2),
            (1, 1, 0, 1, 1, 2),
            (2, (2, 1), (0, 1), (1, 2), 2, 4),
        ),
    ):
        numbers = dict(
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            deform_groups=deform,
        )
        x = torch.randn(2, 4, 5, 6)
        weight = torch.randn(6, 4 // groups, kernel, kernel)
        size = torch.nn.functional.conv2d(
            x, weight, None, stride, padding, dilation, groups
        ).shape[2:]
        tensors = dict(
            x=x,
            offset=torch.randn(2, 2 * deform * kernel**2, *size) * 2,
            weight=weight,
            mask=torch.rand(2, deform * kernel**2, *size),
            bias=torch.randn(6),
        )
        tensors = {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}
        first = {k: tensors[k] for k in ('x', 'offset', 'weight')}
        yield 'deform_conv2d', first, numbers
        yield 'modulated_deform_conv2d', tensors, numbers
        if kernel == 3 and stride == 1:  # what DyHead gives: twice the size
            wide = {k: torch.cat([tensors[k]] * 4, 3) for k in ('offset', 'mask')}
            wide = {k: v.unflatten(3, (2, -1)).flatten(2, 3) for k, v in wide.items()}
            yield 'modulated_deform_conv2d', dict(tensors, **wide), numbers
        unbiased = {k: v for k, v in tensors.items() if k != 'bias'}
        yield 'modulated_deform_conv2d', unbiased, numbers


def cases():
    torch.manual_seed(0)
    yield from nms_cases()
    yield from roi_align_cases()
    yield from deform_cases()


def compute(op, tensors, args):
    """Results by name: what the operator gives, and gradients of a weighted sum."""
    from mmcv import ops

    tensors = {k: v.clone() for k, v in tensors.items()}
    if op in ('nms', 'soft_nms', 'batched_nms'):
        dets, keep = getattr(ops, op)(**tensors, **args)
        return dict(dets=dets, keep=keep)
    if op == 'nms_match':
        dets = torch.cat([tensors['boxes'], tensors['scores'][:, None]], 1)
        groups = ops.nms_match(dets, **args)
        return {f'{i}': torch.as_tensor(group) for i, group in enumerate(groups)}
    learned = [t.requires_grad_() for k, t in tensors.items() if k != 'rois']
    if op == 'roi_align':
        y = ops.roi_align(*tensors.values(), *args.values())
    elif op == 'deform_conv2d':
        y = ops.deform_conv2d(*tensors.values(), *args.values())
    else:
        order = [tensors.get(k) for k in ('x', 'offset', 'mask', 'weight', 'bias')]
        y = ops.modulated_deform_conv2d(*order, *args.values())
    factors = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * factors).sum(), learned)
    names = [k for k in tensors if k != 'rois']
    return dict(y=y.detach(), **{f'd{k}': g for k, g in zip(names, grads, strict=True)})


def load():
    """(name, operator, inputs, arguments, results) of every case."""
    from safetensors import safe_open

    if not REFERENCE.exists():  # it is being written
        return
    with safe_open(REFERENCE, 'pt') as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        index = json.loads(file.metadata()['cases'])
    for i, (op, args, inputs) in enumerate(index):
        results = {
            k.split('/')[2]: v for k, v in kept.items() if k.startswith(f'{i}/result/')
        }
        yield f'{op}-{i}', op, {k: kept[v] for k, v in inputs.items()}, args, results


@pytest.mark.parametrize(
    'op, tensors, args, expected', [pytest.param(*c[1:], id=c[0]) for c in load()]
)
def test_as_compiled(op, tensors, args, expected):
    found = compute(op, tensors, args)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        if op in ('nms', 'nms_match') or not value.is_floating_point():
            assert torch.equal(found[name], value)
        else:  # sums in another order
            exact = 1e-5 if value.dtype == torch.float32 else 1e-10
            torch.testing.assert_close(
                found[name], value, rtol=exact, atol=exact, equal_nan=True
            )


def main():
    import mmcv._ext
    from safetensors.torch import save_file

    if not mmcv._ext.__file__.endswith('.so'):
        raise SystemExit('this mmcv is not compiled')
    kept, index, seen = {}, [], {}
    for i, (op, tensors, args) in enumerate(cases()):
        inputs = {}
        for name, tensor in tensors.items():  # several cases share their inputs
            inputs[name] = seen.setdefault(id(tensor), (f'{i}/{name}', tensor))[0]
            kept.setdefault(inputs[name], tensor)
        for name, result in compute(op, tensors, args).items():
            kept[f'{i}/result/{name}'] = result.contiguous()
        index.append((op, args, inputs))
    save_file(kept, REFERENCE, dict(cases=json.dumps(index)))
    print(f'{len(index)} cases, {REFERENCE.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
