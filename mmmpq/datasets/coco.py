"""Detection sets in COCO format that are made on the user's machine."""

from mmdet.datasets import CocoDataset

from mmmpq.datasets.bundled import require


class MadeCocoDataset(CocoDataset):
    """mmdet's :class:`CocoDataset`, which says how to make what is not there.

    Attributes:
        converter: The script in ``tools/dataset_converters`` that makes it.

    Raises:
        FileNotFoundError: The data is absent; says how to make it.
    """

    converter: str

    def load_data_list(self) -> list[dict]:
        """Loads the annotations; see :class:`CocoDataset`."""
        require(self.ann_file, self.data_root, self.converter)
        return super().load_data_list()
