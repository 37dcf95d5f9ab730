"""The stamps detection set."""

from mmdet.datasets import CocoDataset

from mmmpq.datasets.bundled import require
from mmmpq.registry import DATASETS


@DATASETS.register_module()
class StampsDataset(CocoDataset):
    """Cut-outs of seven kinds of objects pasted on photographs, in COCO format.

    Made by ``tools/dataset_converters/stamps.py``. Takes the arguments of mmdet's
    :class:`CocoDataset`.

    Raises:
        FileNotFoundError: If the data is absent; says how to make it.
    """

    METAINFO = dict(
        classes=(
            *('animal', 'clothes', 'food', 'household', 'plant', 'sign', 'vehicle'),
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

    def load_data_list(self) -> list[dict]:
        """Loads the annotations; see :class:`CocoDataset`."""
        require(self.ann_file, self.data_root, 'stamps.py')
        return super().load_data_list()
