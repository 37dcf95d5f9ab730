"""The held-out split of the architecture step, and the bundled datasets."""

from importlib.util import find_spec

from mmmpq.datasets.held_out import split_dataset, split_indices

__all__ = ['split_dataset', 'split_indices']

# Each toolbox is optional: whoever only classifies needs no mmdet.
if find_spec('mmdet'):
    from mmmpq.datasets.shapes import ShapesDataset  # noqa: F401

    __all__.append('ShapesDataset')
if find_spec('mmpretrain'):
    from mmmpq.datasets.digits import DigitsDataset  # noqa: F401

    __all__.append('DigitsDataset')
