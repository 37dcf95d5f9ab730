"""The digits classification set."""

from mmpretrain.datasets import CustomDataset

from mmmpq.datasets.bundled import require
from mmmpq.registry import DATASETS


@DATASETS.register_module()
class DigitsDataset(CustomDataset):
    """scikit-learn's 1,797 scanned digits, noisy, in one folder per class.

    Made by ``tools/dataset_converters/digits.py``. Takes the arguments of
    mmpretrain's :class:`CustomDataset`.

    Raises:
        FileNotFoundError: If the data is absent; says how to make it.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def load_data_list(self) -> list[dict]:
        """Lists the images; see :class:`CustomDataset`."""
        require(self.img_prefix, self.data_root, 'digits.py')
        return super().load_data_list()
