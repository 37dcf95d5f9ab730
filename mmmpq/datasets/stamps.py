"""The stamps detection set."""

from mmmpq.datasets.coco import MadeCocoDataset
from mmmpq.registry import DATASETS


@DATASETS.register_module()
class StampsDataset(MadeCocoDataset):
    """Cut-outs of seven kinds of objects pasted on photographs, in COCO format.

    Made by ``tools/dataset_converters/stamps.py``. Takes the arguments of mmdet's
    :class:`CocoDataset`.
    """

    converter = 'stamps.py'

    METAINFO = dict(
        classes=(
            'animal',
            'clothes',
            'food',
            'household',
            'plant',
            'sign',
            'vehicle',
        ),
        palette=[
            (220, 20, 60),
            (0, 110, 220),
            (250, 170, 30),
            (165, 42, 200),
            (0, 150, 80),
            (90, 90, 90),
            (120, 70, 20),
        ],
    )
