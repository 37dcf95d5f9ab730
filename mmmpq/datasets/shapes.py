"""The shapes detection set."""

from mmmpq.datasets.coco import MadeCocoDataset
from mmmpq.registry import DATASETS


@DATASETS.register_module()
class ShapesDataset(MadeCocoDataset):
    """Six kinds of shapes drawn on photos, in COCO format.

    Made by ``tools/dataset_converters/shapes.py``. Takes the arguments of mmdet's
    :class:`CocoDataset`.
    """

    converter = 'shapes.py'

    METAINFO = dict(
        classes=('square', 'disc', 'triangle', 'star', 'cross', 'ring'),
        palette=[
            (220, 20, 60),
            (0, 110, 220),
            (250, 170, 30),
            (165, 42, 200),
            (0, 150, 80),
            (90, 90, 90),
        ],
    )
