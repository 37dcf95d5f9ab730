"""What the once-for-all MobileNetV3 and its fixed nets share."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.utils import InvertedResidual, make_divisible
from torch import Tensor, nn

from mmmpq.models.elastic.block import middle_channels
from mmmpq.models.elastic.genes import Genes
from mmmpq.models.elastic.names import rename_flat, rename_published

# Width, stride, squeeze-excite and activation of each stage
STAGES = (
    (24, 2, False, 'ReLU'),
    (40, 2, True, 'ReLU'),
    (80, 2, False, 'HSwish'),
    (112, 1, True, 'HSwish'),
    (160, 2, True, 'HSwish'),
)
KAIMING = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', layer='BatchNorm2d', val=1),
]


class MobileNetV3Stages(BaseBackbone):
    """What the supernet and its fixed nets share; see :class:`ElasticMobileNetV3`."""

    def __init__(
        self,
        width_mult: float = 1.0,
        depths: Sequence[int] = (2, 3, 4),
        kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[float] = (3, 4, 6),
        stem: tuple[int, int] = (16, 2),
        first: tuple[int, int] = (16, 1),
        stages: Sequence[tuple[int, int, bool, str]] = STAGES,
        last: int = 960,
        in_channels: int = 3,
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg or KAIMING)
        self.norm_cfg = norm_cfg or dict(type='BN')
        if not width_mult > 0:
            raise ValueError(
                f'width_mult: found {width_mult!r}; accepted are numbers > 0'
            )
        self.depths = _choices('depths', depths)
        self.kernels = _choices('kernels', kernels)
        self.expands = _choices('expands', expands)
        if any(k % 2 == 0 for k in self.kernels):
            raise ValueError(f'kernels: found {kernels}; accepted are odd sizes')
        if self.expands[-1] <= 1:
            raise ValueError(f'expands: found {expands}; the largest must be above 1')
        if self.norm_cfg.get('type') != 'BN':
            raise ValueError(
                f'norm_cfg.type: found {self.norm_cfg.get("type")!r}; accepted is "BN"'
            )

        def width(channels: int) -> int:
            return make_divisible(channels * width_mult, 8)

        self.stem = self._conv(in_channels, width(stem[0]), 3, stem[1])
        channels = width(first[0])
        self.first = InvertedResidual(
            width(stem[0]),
            channels,
            width(stem[0]),
            stride=first[1],
            norm_cfg=self.norm_cfg,
        )
        self._stage_names = [f'stage{i}' for i in range(1, len(stages) + 1)]
        self._read()
        for name, (out, stride, with_se, act) in zip(
            self._stage_names, stages, strict=True
        ):
            blocks = []
            for i in range(self._depth(name)):
                self._check_expands(name, channels)
                blocks.append(
                    self._block(
                        f'{name}.{i}',
                        *(channels, width(out), 1 if i else stride),
                        *(with_se, dict(type=act)),
                    )
                )
                channels = width(out)
            self.add_module(name, nn.Sequential(*blocks))
        self.last = self._conv(channels, width(last), 1)

    def _check_expands(self, stage: str, channels: int) -> None:
        for expand in self.expands:
            if middle_channels(channels, expand) == channels:
                raise ValueError(
                    f'expands: found {expand}, which leaves the {channels} channels of '
                    f'a block of {stage} as they are: a fixed net has no expanding '
                    'layer then; accepted are ratios that change them'
                )

    def _conv(self, in_channels: int, out: int, kernel: int, stride: int = 1):
        return ConvModule(
            *(in_channels, out, kernel, stride, kernel // 2),
            norm_cfg=self.norm_cfg,
            act_cfg=dict(type='HSwish'),
        )

    @property
    def stages(self) -> dict[str, nn.Sequential]:
        return {name: getattr(self, name) for name in self._stage_names}

    def _genes(self) -> Genes:
        genes: Genes = {}
        for stage in self._stage_names:
            genes[f'{stage}.depth'] = self.depths
            for i in range(self.depths[-1]):
                genes[f'{stage}.{i}.kernel'] = self.kernels
                genes[f'{stage}.{i}.expand'] = self.expands
        return genes

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks of all stages in their order."""
        for stage in self.stages.values():
            yield from stage

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images ``(N, C, H, W)`` to the last layer's output in a tuple."""
        x = self.first(self.stem(x))
        for block in self.blocks():
            x = block(x)
        return (self.last(x),)

    def _checkpoint_filter(self, state_dict: dict[str, Any], *_: Any) -> None:
        """mmpretrain's classifiers call it before they load a checkpoint."""
        rename_published(state_dict)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        rename_flat(state_dict, prefix)
        self._complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Makes a checkpoint fit, in place."""


def _choices(key: str, values: Sequence[float]) -> tuple:
    choices = tuple(sorted(set(values))) if isinstance(values, (list, tuple)) else ()
    if not choices or not all(isinstance(v, (int, float)) and v > 0 for v in choices):
        raise ValueError(
            f'{key}: found {values!r}; accepted is a list of positive numbers'
        )
    return choices
