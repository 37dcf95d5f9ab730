"""Which classes of layers are quantized, and the classes that take their place."""

from typing import Any, TypeVar

from torch import Tensor, nn

from mmmpq.layers.base import QuantLayer
from mmmpq.layers.conv import (
    MixedConv1d,
    MixedConv2d,
    MixedConv3d,
    MixedConvTranspose2d,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose2d,
)
from mmmpq.layers.linear import MixedLinear, QuantLinear
from mmmpq.layers.mixed import MixedLayer
from mmmpq.layers.padded import pads_and_convolves
from mmmpq.layers.standardised import WEIGHT_STANDARDISED
from mmmpq.quantizers import recomputing

try:
    from mmcv import ops
except ImportError:  # classifiers need none
    DEFORMED: tuple[type, ...] = ()
else:
    DEFORMED = (
        *(ops.DeformConv2d, ops.DeformConv2dPack),
        *(ops.ModulatedDeformConv2d, ops.ModulatedDeformConv2dPack),
    )

Kind = TypeVar('Kind', bound=type)
PLAIN = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear  # their first side is C_out
# float -> (mixed, fixed)
KINDS: dict[type, tuple[type, type]] = {
    nn.Conv2d: (MixedConv2d, QuantConv2d),
    nn.Linear: (MixedLinear, QuantLinear),
    nn.ConvTranspose2d: (MixedConvTranspose2d, QuantConvTranspose2d),
    nn.Conv1d: (MixedConv1d, QuantConv1d),
    nn.Conv3d: (MixedConv3d, QuantConv3d),
    **WEIGHT_STANDARDISED,
}


def float_twin(module: nn.Module) -> tuple[type, type] | None:
    """(mixed, fixed) classes that can take the place of ``module``, or None.

    Only registered classes qualify, and subclasses of ``nn.Conv2d`` whose own forward
    is seen to pad and to convolve: any other may compute something else. The wrappers
    of mmcv differ for empty inputs of old torch versions alone. A weight that is
    computed (``weight_norm``) is none to be quantized, and neither is that of a
    transposed convolution of several groups.
    """
    kind = type(module)
    if module._parameters.get('weight') is None:
        return None
    if isinstance(module, nn.ConvTranspose2d) and module.groups > 1:
        return None
    if kind.__module__ == 'mmcv.cnn.bricks.wrappers':
        kind = kind.__base__
    if kind not in KINDS and pads_and_convolves(module):
        quantizable(kind, affine=True)
    return KINDS.get(kind)


def quantizable(
    kind: Kind,
    mixed: type | None = None,
    fixed: type | None = None,
    affine: bool = False,
) -> Kind:
    """Has layers of a class of one's own quantized; a decorator as well.

    Args:
        kind: A subclass of one of :data:`PLAIN`. Its ``forward(x)``, or that
            of its parent, computes with ``self.weight`` and ``self.bias`` and changes
            nothing in place: it will find there, and in ``x``, what is quantized. With
            ``affine = True`` it says that it gives W x + b for a linear W: BatchNorm is
            then folded into it, and its integers are checked.
        mixed, fixed: Layers of ours in its place; default: made of ``kind``.
        affine: As ``affine = True`` in the class.

    Raises:
        ValueError: ``kind`` is no such subclass.

    Examples:
        >>> @quantizable
        ... class Padded(nn.Conv2d):
        ...     def forward(self, x):
        ...         x = nn.functional.pad(x, (0, 1, 0, 1))
        ...         return nn.functional.conv2d(x, self.weight, self.bias, self.stride)
        >>> [twin.__name__ for twin in float_twin(Padded(1, 1, 2))]
        ['MixedPadded', 'QuantPadded']
    """
    if not issubclass(kind, PLAIN):
        raise ValueError(
            f'quantizable: found {kind.__name__}; accepted are subclasses of '
            f'{", ".join(f"nn.{plain.__name__}" for plain in PLAIN)}'
        )
    return _twins(kind, mixed, fixed, affine or getattr(kind, 'affine', False))


def _twins(
    kind: Kind,
    mixed: type | None = None,
    fixed: type | None = None,
    affine: bool = False,
) -> Kind:
    attributes = dict(affine=affine)
    fixed = fixed or _layer_class('Quant', QuantLayer, kind, **attributes)
    mixed = mixed or _layer_class(
        'Mixed', MixedLayer, kind, fixed_class=fixed, **attributes
    )
    KINDS[kind] = mixed, fixed
    return kind


class _Deformed:
    """Samples its quantized input where the float one, or its parent, says.

    The samples lie between the levels, so that there is nothing for integers to check.
    """

    affine = False

    def _init_quant(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'bias'):
            self.register_parameter('bias', None)
        super()._init_quant(*args, **kwargs)

    def forward(self, input: Tensor, *where: Tensor) -> Tensor:
        own = dict(_where=where)
        if 'conv_offset' in self._modules:
            offset = self.conv_offset(input)
            own['conv_offset'] = lambda _: offset
        self.__dict__.update(own)
        try:
            return super().forward(input)
        finally:
            for name in own:
                del self.__dict__[name]


def _layer_class(prefix: str, base: type, kind: type, **attributes: Any) -> type:
    # Its direct bases are those of ``kind``, too, for the sake of ``init_cfg``, as in
    # conv.py.
    bases = base, _OwnForward, kind, *kind.__bases__
    if kind in DEFORMED:
        bases = _Deformed, *bases
    attributes |= dict(float_class=kind)
    attributes |= dict(__module__=kind.__module__, __doc__=base.__doc__)
    return type(f'{prefix}{kind.__name__}', bases, attributes)


class _OwnForward:
    """The float operation is the forward of ``float_class``."""

    float_class: type
    _where: tuple[Tensor, ...] = ()  # what it is called with beside its input

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # An attribute of the object hides the parameter of that name.
        self.__dict__.update(weight=weight, bias=bias)
        try:
            with recomputing(x, weight):
                return self.float_class.forward(self, x, *self._where)
        finally:
            del self.__dict__['weight'], self.__dict__['bias']


for _kind in DEFORMED:
    _twins(_kind)
