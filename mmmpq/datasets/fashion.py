"""Fashion-MNIST."""

from mmpretrain.datasets import FashionMNIST

from mmmpq.datasets.bundled import require
from mmmpq.registry import DATASETS


@DATASETS.register_module()
class FashionDataset(FashionMNIST):
    """Fashion-MNIST, unpacked by ``tools/dataset_converters/fashion.py``.

    Takes the arguments of mmpretrain's :class:`FashionMNIST`, and fetches nothing.

    Raises:
        FileNotFoundError: If the data is absent; says how to get it.
    """

    def load_data_list(self) -> list[dict]:
        """Reads the photos ``(28, 28)`` and labels; see :class:`FashionMNIST`."""
        root = self.data_prefix['root']
        require(f'{root}/train-images-idx3-ubyte', self.data_root, 'fashion.py')
        return super().load_data_list()
