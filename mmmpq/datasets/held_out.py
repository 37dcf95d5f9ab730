"""The held-out split: the images on which the architecture step is taken.

The weights learn on one part of the training set and the logits on the other, so
that a precision is chosen for how it generalises and not for how it memorises.
"""

import copy

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset
from torch.utils import data

WRAPPERS = ('RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset')


def split_indices(
    n: int, fraction: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Splits ``range(n)`` at random into two disjoint, sorted parts.

    Args:
        n (int): Number of samples.
        fraction (float): Share of the samples to hold out, in (0, 1); the held-out
            part has ``round(n * fraction)`` of them.
        seed (int): Seed of the split. The same arguments give the same split.

    Returns:
        tuple[list[int], list[int]]: Indices of the training and held-out part.

    Raises:
        ValueError: If ``fraction`` is outside (0, 1) or either part is empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f'held_out={fraction}: must be a fraction of the training set, strictly '
            'between 0 and 1'
        )
    size = round(n * fraction)
    if size in (0, n):
        raise ValueError(
            f'held_out={fraction} splits {n} training samples into {n - size} to train '
            f'on and {size} held out; both parts need at least one'
        )
    order = np.random.default_rng(seed).permutation(n).tolist()
    return sorted(order[size:]), sorted(order[:size])


def split_dataset(dataset, fraction: float, seed: int = 0) -> tuple:
    """Splits a built training set into a training and a held-out dataset.

    Both are full datasets of the given type (meta information, ``get_data_info``,
    pipeline), so samplers, batch samplers and hooks work on them as on the original,
    which stays as it was. Wrappers are split inside: each part wraps its own share
    of the images, and no image is in both. A ``ConcatDataset`` is split dataset by
    dataset, a ``Subset`` by its indices. Of another map-style dataset of torch the
    parts are a ``Subset``.

    Args:
        dataset (BaseDataset | ConcatDataset | RepeatDataset | ClassBalancedDataset |
            MultiImageMixDataset | KFoldDataset | torch.utils.data.Dataset): The
            training set, possibly nested wrappers.
        fraction (float): Share of the samples to hold out, in (0, 1).
        seed (int): Seed of the split.

    Returns:
        tuple: The training and the held-out dataset.

    Raises:
        ValueError: If either part would be empty.
        TypeError: If the dataset is none of the above.
    """
    if isinstance(dataset, BaseDataset):
        parts = split_indices(len(dataset), fraction, seed)
        return tuple(_subset(dataset, part) for part in parts)
    if isinstance(dataset, ConcatDataset):
        pairs = [split_dataset(part, fraction, seed) for part in dataset.datasets]
        parts = zip(*pairs, strict=True)
        return tuple(_rewrap(dataset, datasets=list(part)) for part in parts)
    if any(cls.__name__ in WRAPPERS for cls in type(dataset).__mro__):
        parts = split_dataset(dataset.dataset, fraction, seed)
        return tuple(_rewrap(dataset, dataset=part) for part in parts)
    if any(cls.__name__ == 'KFoldDataset' for cls in type(dataset).__mro__):
        dataset.full_init()  # then its fold is a dataset of its own
        parts = split_dataset(dataset.dataset, fraction, seed)
        return tuple(_with(dataset, dataset=part) for part in parts)
    if isinstance(dataset, data.ConcatDataset):
        pairs = [split_dataset(part, fraction, seed) for part in dataset.datasets]
        return tuple(type(dataset)(part) for part in zip(*pairs, strict=True))
    if hasattr(dataset, 'dataset') and hasattr(dataset, 'indices'):
        images = list(dict.fromkeys(dataset.indices))  # an image may be there twice
        parts = split_indices(len(images), fraction, seed)
        sides = [{images[i] for i in part} for part in parts]
        return tuple(
            _with(dataset, indices=[i for i in dataset.indices if i in part])
            for part in sides
        )
    if _is_plain(dataset):
        return tuple(
            _with(data.Subset(dataset, part), metainfo=getattr(dataset, 'metainfo', {}))
            for part in split_indices(len(dataset), fraction, seed)
        )
    raise TypeError(
        f'held_out={fraction}: cannot split a {type(dataset).__name__}; accepted are '
        f'mmengine BaseDatasets, ConcatDataset, KFoldDataset, {", ".join(WRAPPERS)} '
        'and map-style datasets of torch that wrap no other. Give held_out a dataset '
        'of its own instead'
    )


def _subset(dataset, indices: list[int]):
    """A copy of a dataset with some of its samples and a pipeline of its own.

    ``get_subset`` remembers what it has copied by ``id`` from one call to the next, and
    may take a new pipeline for a dataset that is long gone (mmengine 0.10.7).
    """
    part = copy.copy(dataset)
    part.pipeline = copy.deepcopy(dataset.pipeline)
    part.get_subset_(indices)
    return part


def _is_plain(dataset) -> bool:
    """Whether it has images of its own: a wrapper may have each of them twice."""
    wraps = hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets')
    plain = isinstance(dataset, data.Dataset) and hasattr(dataset, '__len__')
    return plain and not wraps


def _with(original, **attributes):
    part = copy.copy(original)
    vars(part).update(attributes)
    return part


def _rewrap(wrapper, **inner):
    """A copy of a dataset wrapper around other datasets."""
    part = copy.copy(wrapper)
    vars(part).update(inner, _fully_initialized=False)
    part.full_init()
    if hasattr(part, 'num_samples'):  # MultiImageMixDataset counts in its constructor
        part.num_samples = len(part.dataset)
    return part
