"""The held-out split of the architecture step, and the bundled datasets."""

from importlib.util import find_spec

from mmmpq.datasets.held_out import split_dataset, split_indices

__all__ = ['split_dataset', 'split_indices']

# Each toolbox is optional: whoever only classifies needs no mmdet.
if find_spec('mmdet'):
    from mmmpq.datasets.shapes import ShapesDataset
    from mmmpq.datasets.stamps import StampsDataset

    __all__ += ['ShapesDataset', 'StampsDataset']
if find_spec('mmpretrain'):
    from mmmpq.datasets.digits import DigitsDataset
    from mmmpq.datasets.fashion import FashionDataset

    __all__ += ['DigitsDataset', 'FashionDataset']
