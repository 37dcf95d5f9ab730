"""The layer families that are counted, and what one call of each computes."""

from math import prod

from torch import Tensor, nn

try:
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
except ImportError:  # mmcv-lite, or no mmcv: classifiers need no ops
    DeformConv2d = ModulatedDeformConv2d = ()

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FAMILIES = {
    **{cls.__name__: cls for cls in CONVS + _TRANSPOSED},
    'Linear': nn.Linear,
    'DeformConv2d': DeformConv2d,
    'ModulatedDeformConv2d': ModulatedDeformConv2d,
    'MultiheadAttention': nn.MultiheadAttention,
}
LAYER_TYPES = (*_FAMILIES, *(f'Depthwise{cls.__name__}' for cls in CONVS))


def layer_type(module: nn.Module) -> str | None:
    """Family of a layer, one of :data:`LAYER_TYPES`; None if it is not counted.

    Subclasses belong to their family (a ``QuantConv2d`` is a 'Conv2d'). A conv with
    ``groups == in_channels > 1`` is a 'DepthwiseConv2d'. ``nn.MultiheadAttention``
    is one layer: the sum of its four projections.
    """
    for name, cls in _FAMILIES.items():
        if isinstance(module, cls):
            depthwise = (
                isinstance(module, CONVS) and module.groups == module.in_channels > 1
            )
            return f'Depthwise{name}' if depthwise else name
    return None


def weights_of(module: nn.Module) -> int:
    """Number of weights (biases, which stay float, are not among them)."""
    if isinstance(module, nn.MultiheadAttention):
        named = module.named_parameters()
        return sum(p.numel() for name, p in named if name.endswith('weight'))
    if isinstance(module, CONVS):  # an elastic one says what part of it is in use
        per_output = module.in_channels // module.groups * prod(module.kernel_size)
        return module.out_channels * per_output
    return module.weight.numel()


def layer_shape(module: nn.Module) -> dict:
    """Channels, kernel, stride and groups, as lists and ints that JSON knows."""
    if isinstance(module, nn.MultiheadAttention):
        channels = module.embed_dim, module.embed_dim
    elif isinstance(module, nn.Linear):
        channels = module.in_features, module.out_features
    else:
        channels = module.in_channels, module.out_channels
    return dict(
        in_channels=channels[0],
        out_channels=channels[1],
        kernel_size=list(getattr(module, 'kernel_size', (1,))),
        stride=list(getattr(module, 'stride', (1,))),
        groups=getattr(module, 'groups', 1),
    )


def macs_of(
    module: nn.Module, inputs: tuple, kwargs: dict, output
) -> tuple[int, tuple, int, int]:
    """MACs, spatial input size, number of inputs and input elements of one call.

    - conv: output elements x in_channels / groups x kernel elements;
    - transposed conv: input elements x out_channels / groups x kernel elements;
    - linear: output elements x in_features; its 'spatial size' are the dimensions
      between the first and the last: (L,) for (N, L, C), () for (N, C);
    - attention: each projection as a linear layer.

    Args:
        module: A layer whose :func:`layer_type` is not None.
        inputs: All inputs of the call, positional ones first.
        kwargs: The call's keyword inputs.
        output: What the call returned.
    """
    x = inputs[0]
    if isinstance(module, nn.MultiheadAttention):
        names = ('query', 'key', 'value')
        rest = [kwargs[name] for name in names if name in kwargs]
        positional = len(inputs) - len(kwargs)
        parts = [*inputs[:positional], *rest][:3] + [output[0]]
        elements = sum(part.numel() for part in parts)
        tokens, images = x.numel() // x.shape[-1], 1
        if x.dim() == 3:
            images = x.shape[0 if module.batch_first else 1]
        return elements * module.embed_dim, (tokens // images,), images, elements
    if isinstance(module, nn.Linear):
        macs = output.numel() * module.in_features
        if x.dim() == 1:
            return macs, (), 1, x.numel()
        return macs, tuple(x.shape[1:-1]), x.shape[0], x.numel()
    kernel = prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        macs = x.numel() * (module.out_channels // module.groups) * kernel
    else:
        macs = output.numel() * (module.in_channels // module.groups) * kernel
    size = tuple(x.shape[-len(module.kernel_size) :])
    return macs, size, _images(x, module), x.numel()


def _images(x: Tensor, module: nn.Module) -> int:
    batched = x.dim() == len(module.kernel_size) + 2
    return x.shape[0] if batched else 1
