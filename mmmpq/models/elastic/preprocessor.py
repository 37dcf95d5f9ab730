"""Images of any of several sizes: the elastic input resolution."""

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.utils import ClsDataPreprocessor
from torch.nn import functional as F

from mmmpq.models.elastic.genes import Genes, checked, read_architecture
from mmmpq.registry import MODELS


class _Resizing(ClsDataPreprocessor):
    resolution: int | None = None

    def forward(self, data: dict, training: bool = False) -> dict:
        """As of the base class, with square images resized to ``resolution``.

        Raises:
            ValueError: The images to be resized are not square.
        """
        data = super().forward(data, training)
        height, width = data['inputs'].shape[-2:]
        if self.resolution is None or self.resolution == height == width:
            return data
        if height != width:
            raise ValueError(
                f'data_preprocessor: found images of {width}x{height} px; accepted '
                'are square ones, cropped by the pipeline'
            )
        data['inputs'] = F.interpolate(
            data['inputs'],
            size=(self.resolution, self.resolution),
            mode='bilinear',
            antialias=True,
        )
        return data


@MODELS.register_module()
class ElasticClsDataPreprocessor(_Resizing):
    """mmpretrain's preprocessor with the gene ``resolution``.

    The batch of square images is resized with antialiased bilinear interpolation to
    the size in use, the largest at first. The pipeline crops to the largest.

    Args:
        sizes: Sides in px that images may have, such as ``range(128, 225, 4)``.
        **kwargs: As of ``ClsDataPreprocessor``.

    Raises:
        ValueError: ``sizes`` is no list of positive integers.
    """

    def __init__(self, sizes: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes = tuple(sorted(set(sizes)))
        if not self.sizes or not all(isinstance(s, int) and s > 0 for s in self.sizes):
            raise ValueError(
                f'data_preprocessor.sizes: found {sizes!r}; accepted is a list of '
                'positive integers'
            )
        self.resolution = self.sizes[-1]

    def genes(self) -> Genes:
        """Gene -> allowed values, smallest first."""
        return dict(resolution=self.sizes)

    @property
    def architecture(self) -> dict[str, int]:
        """The value of each gene in use."""
        return dict(resolution=self.resolution)

    def activate(self, values: dict[str, Any]) -> None:
        """Puts a resolution to use; without one, it stays as it is.

        Raises:
            ValueError: A resolution that is not offered.
        """
        choice = checked(self.genes(), values, 'subnet')
        self.resolution = choice.get('resolution', self.resolution)

    def settle(self) -> None:
        """Becomes the preprocessor of the resolution in use, in place."""
        del self.sizes
        self.__class__ = SubnetClsDataPreprocessor


@MODELS.register_module()
class SubnetClsDataPreprocessor(_Resizing):
    """mmpretrain's preprocessor that resizes to the resolution of a subnet.

    Args:
        architecture: ``dict(resolution=...)``, the side in px, or the policy file that
            holds it; without one, images keep their size.
        sizes: Those of the supernet, of which it must be one.
        **kwargs: As of ``ClsDataPreprocessor``.
    """

    def __init__(
        self, architecture: Any, sizes: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        values = read_architecture(architecture)
        if sizes is not None:
            checked(dict(resolution=tuple(sizes)), values, 'architecture')
        self.resolution = values.get('resolution')
