"""The held-out split: disjoint, complete, repeatable, whatever wraps the dataset."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmpretrain.datasets import KFoldDataset
from torch.utils import data

from mmmpq.datasets import split_dataset, split_indices


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_indices_are_a_partition(n, fraction, seed):
    size = round(n * fraction)
    if size in (0, n):
        with pytest.raises(ValueError, match='held_out'):
            split_indices(n, fraction, seed)
        return
    train, held = split_indices(n, fraction, seed)
    assert len(held) == size
    assert sorted(train + held) == list(range(n))
    assert (train, held) == split_indices(n, fraction, seed)


def test_seed_changes_the_split():
    assert split_indices(100, 0.2, 0) != split_indices(100, 0.2, 1)


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=f'held_out={fraction}.*between 0 and 1'):
        split_indices(10, fraction)


def test_empty_part_names_the_numbers():
    with pytest.raises(
        ValueError, match=r'held_out=0\.01 splits 10 training samples into 10 .* 0 held'
    ):
        split_indices(10, 0.01)


class Numbers(BaseDataset):
    METAINFO = dict(classes=('even', 'odd'))

    def __init__(self, numbers, **kwargs):
        self.numbers = numbers
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=n) for n in self.numbers]

    def get_cat_ids(self, idx):
        return [self.get_data_info(idx)['number'] % 2]


def numbers(dataset):
    return [dataset[i]['number'] for i in range(len(dataset))]


@pytest.mark.parametrize('serialize_data', [True, False])
def test_plain_dataset(serialize_data):
    dataset = Numbers(range(50), serialize_data=serialize_data)
    train, held = split_dataset(dataset, 0.2, seed=3)
    assert (len(train), len(held), len(dataset)) == (40, 10, 50)
    assert sorted(numbers(train) + numbers(held)) == list(range(50))
    assert type(held) is Numbers and held.metainfo == dataset.metainfo
    again = split_dataset(dataset, 0.2, seed=3)
    assert numbers(again[1]) == numbers(held)


@pytest.mark.parametrize(
    ('wrap', 'times'),
    [
        (lambda d: RepeatDataset(d, 3), 3),
        (lambda d: ClassBalancedDataset(d, 1e-3), 1),
        (lambda d: ConcatDataset([d, Numbers(range(50, 80))]), 1),
    ],
)
def test_wrappers_split_inside(wrap, times):
    dataset = wrap(Numbers(range(50)))
    before = numbers(dataset)
    train, held = split_dataset(dataset, 0.2, seed=0)
    assert type(train) is type(held) is type(dataset)
    assert not set(numbers(train)) & set(numbers(held))
    assert sorted(numbers(train) + numbers(held)) == sorted(before)
    assert len(held) == round(0.2 * len(dataset))
    assert numbers(dataset) == before
    assert held.metainfo['classes'] == ('even', 'odd')


def test_nested_wrappers():
    parts = [RepeatDataset(Numbers(range(20)), 2), Numbers(range(20, 40))]
    dataset = ConcatDataset([parts[1], parts[1]])
    dataset.datasets = parts  # the constructor takes plain datasets alone
    train, held = split_dataset(dataset, 0.5)
    assert [len(d) for d in held.datasets] == [20, 10]
    assert not set(numbers(train)) & set(numbers(held))


def test_objects_of_earlier_splits_are_not_taken_for_new_ones():
    """OpenMMLab's own subsets share one memo, in which an id may come again."""
    dataset = Numbers(range(10))
    (shared,) = BaseDataset._copy_without_annotation.__defaults__
    memo = {} if shared is None else shared  # onedl-mmengine's subsets share none
    memo[id(dataset.pipeline)] = 'the copy of something long gone'
    try:
        for part in split_dataset(dataset, 0.5):
            assert type(part.pipeline) is type(dataset.pipeline)
            assert part.pipeline is not dataset.pipeline
            assert len(numbers(part)) == 5
    finally:
        memo.clear()
    assert len(dataset) == 10


class Plain(data.Dataset):
    """Any dataset of torch."""

    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return dict(number=i)


class Twice(data.Dataset):
    def __init__(self):
        self.dataset = Plain()

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return self.dataset[i % 10]


@pytest.mark.parametrize(
    ('dataset', 'numbers'),
    [
        (Plain(), range(10)),
        (data.ConcatDataset([Plain(), Plain()]), [*range(10)] * 2),
        (data.Subset(Plain(), [1, 2, 3, 5, 8, 8, 1]), [1, 1, 2, 3, 5, 8, 8]),
        (KFoldDataset(dict(type=Numbers, numbers=range(10)), 0, 5), range(2, 10)),
    ],
)
def test_datasets_of_torch_and_folds(dataset, numbers):
    one, other = split_dataset(dataset, 0.4, seed=1)
    found = [[part[i]['number'] for i in range(len(part))] for part in (one, other)]
    assert sorted([*found[0], *found[1]]) == sorted(numbers)
    assert not set(found[0]) & set(found[1])
    assert len(dataset) == len(numbers)
    if isinstance(dataset, Plain):
        assert one.metainfo == Plain.metainfo


class Endless(data.IterableDataset):
    def __iter__(self):
        return iter(int, 1)


@pytest.mark.parametrize('dataset', [Twice(), Endless()])
def test_datasets_that_cannot_be_split(dataset):
    with pytest.raises(TypeError, match='cannot split a'):
        split_dataset(dataset, 0.2)


def test_unknown_dataset():
    with pytest.raises(TypeError, match=r'held_out=0\.2: cannot split a list'):
        split_dataset([1, 2, 3], 0.2)


@pytest.fixture
def coco(tmp_path):
    images = [
        dict(id=i, file_name=f'{i}.png', width=32 + i, height=64 - i) for i in range(20)
    ]
    annotations = [
        dict(id=i, image_id=i, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
        for i in range(20)
    ]
    path = tmp_path / 'coco.json'
    path.write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='thing')],
            )
        )
    )
    datasets = pytest.importorskip('mmdet.datasets')
    return datasets.CocoDataset(
        ann_file=str(path),
        data_prefix=dict(img=''),
        metainfo=dict(classes=('thing',)),
        pipeline=[],
    )


def img_ids(dataset):
    return {dataset.get_data_info(i)['img_id'] for i in range(len(dataset))}


def test_coco_dataset_with_an_aspect_ratio_batch_sampler(coco):
    from mmdet.datasets.samplers import AspectRatioBatchSampler
    from mmengine.dataset import DefaultSampler

    train, held = split_dataset(coco, 0.25)
    assert img_ids(train) | img_ids(held) == set(range(20))
    assert (len(img_ids(train)), len(img_ids(held))) == (15, 5)
    assert held.metainfo['classes'] == ('thing',)
    batches = AspectRatioBatchSampler(DefaultSampler(held, shuffle=False), 2)
    assert sorted(i for batch in batches for i in batch) == list(range(5))


def test_multi_image_mix_dataset(coco):
    from mmdet.datasets import MultiImageMixDataset

    train, held = split_dataset(MultiImageMixDataset(coco, pipeline=[]), 0.25)
    assert (len(train), len(held)) == (15, 5)
    assert img_ids(train.dataset).isdisjoint(img_ids(held.dataset))


def test_custom_dataset(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')
    cv2 = pytest.importorskip('cv2')
    for label in 'ab':
        (tmp_path / label).mkdir()
        for i in range(10):
            cv2.imwrite(str(tmp_path / label / f'{i}.png'), np.zeros((4, 4), np.uint8))
    dataset = datasets.CustomDataset(data_prefix=str(tmp_path), pipeline=[])
    train, held = split_dataset(dataset, 0.3)
    paths = [
        {part.get_data_info(i)['img_path'] for i in range(len(part))}
        for part in (train, held)
    ]
    assert [len(p) for p in paths] == [14, 6]
    assert not paths[0] & paths[1]
    assert held.CLASSES == dataset.CLASSES
    assert len(held.get_gt_labels()) == 6
