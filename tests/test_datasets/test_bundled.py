"""The bundled datasets: their converters, and what happens when they are absent."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest


def convert(name, *args):
    """Runs a converter, without the seconds that the start of a script takes."""
    main = importlib.import_module(f'mmmpq.cli.data.{name}').main
    main([str(arg) for arg in args])


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*.*')}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    convert('shapes', '--out', folder, '--train', 30, '--val', 3)
    return folder


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    convert('digits', '--out', folder)
    return folder


def test_shapes_annotations(shapes):
    from pycocotools.coco import COCO

    coco = COCO(str(shapes / 'annotations' / 'instances_train.json'))
    assert len(coco.imgs) == 30
    assert {a['category_id'] for a in coco.anns.values()} == set(range(1, 7))
    for annotation in coco.anns.values():
        x, y, w, h = annotation['bbox']
        assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 128
        (polygon,) = annotation['segmentation']
        corners = np.array(polygon).reshape(-1, 2)
        box = [*corners.min(0), *np.ptp(corners, axis=0)]
        np.testing.assert_allclose(box, [x, y, w, h], atol=0.02)
        mask = coco.annToMask(annotation)  # whole pixels, hence the tolerance
        assert mask.sum() == pytest.approx(annotation['area'], rel=0.1, abs=8)


def test_shapes_are_drawn_where_annotated(shapes):
    from pycocotools.coco import COCO

    coco = COCO(str(shapes / 'annotations' / 'instances_train.json'))
    for image_id, image in coco.imgs.items():
        pixels = cv2.imread(str(shapes / 'train' / image['file_name']))
        assert pixels.shape == (128, 128, 3)
        # nothing lies on the last shape, so its inside has one colour
        mask = coco.annToMask(coco.imgToAnns[image_id][-1])
        inside = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
        assert np.ptp(pixels[inside], axis=0).max(initial=0) == 0


def test_shapes_depend_on_the_seed_alone(shapes, tmp_path):
    args = ['--train', 30, '--val', 3]
    convert('shapes', '--out', tmp_path / 'a', *args)
    assert contents(tmp_path / 'a') == contents(shapes)
    convert('shapes', '--out', tmp_path / 'a', *args, '--seed', 1)
    assert contents(tmp_path / 'a') != contents(shapes)
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_converter_spares_what_it_did_not_make(shapes, tmp_path, capsys):
    (tmp_path / 'precious').write_text('')
    with pytest.raises(SystemExit, match='exists and was not made by this'):
        convert('shapes', '--out', tmp_path)
    with pytest.raises(SystemExit, match="made by 'shapes'"):
        convert('digits', '--out', shapes)
    before = (shapes / 'made_with.json').stat().st_mtime_ns
    convert('shapes', '--out', shapes, '--train', 30, '--val', 3)
    assert 'up to date' in capsys.readouterr().out
    assert (shapes / 'made_with.json').stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ('name', 'option', 'value', 'wanted'),
    [
        ('shapes', '--train', 0, 'at least 1'),
        ('shapes', '--size', 500, 'from 32 to 427'),
        ('digits', '--train', 1797, 'from 1 to 1796'),
        ('digits', '--noise', -1, 'not be negative'),
    ],
)
def test_converter_refuses(name, option, value, wanted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert(name, '--out', tmp_path / 'x', option, value)
    assert f'{option} {value}' in (error := capsys.readouterr().err) and wanted in error
    assert not list(tmp_path.iterdir())


def test_an_interrupted_converter_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: False)
    with pytest.raises(OSError, match='cannot write'):
        convert('digits', '--out', tmp_path / 'x')
    assert not list(tmp_path.iterdir())


def test_shapes_dataset(shapes):
    pytest.importorskip('mmdet')
    from mmmpq.datasets import ShapesDataset

    dataset = ShapesDataset(
        data_root=str(shapes),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
    )
    found = json.loads((shapes / 'annotations' / 'instances_val.json').read_text())
    names = tuple(c['name'] for c in found['categories'])
    assert len(dataset) == 3
    assert dataset.metainfo['classes'] == names
    assert len(dataset.metainfo['palette']) == len(names)
    with pytest.raises(
        FileNotFoundError, match=r"data_root='nowhere'.*converters/shapes.py --out"
    ):
        ShapesDataset(data_root='nowhere', ann_file='annotations/x.json')


def test_digits_are_split_by_scan(digits):
    pytest.importorskip('mmpretrain')
    from sklearn.datasets import load_digits

    from mmmpq.datasets import DigitsDataset

    target = load_digits().target
    scans = []
    for split, count in (('train', 1000), ('val', 797)):
        dataset = DigitsDataset(data_root=str(digits), data_prefix=split)
        assert len(dataset) == count
        for i in range(count):
            info = dataset.get_data_info(i)
            scan = int(Path(info['img_path']).stem)
            assert info['gt_label'] == target[scan]
            assert (scan < 1000) == (split == 'train')
            scans.append(scan)
    assert sorted(scans) == list(range(1797))
    with pytest.raises(
        FileNotFoundError, match=r"data_root='nowhere'.*converters/digits.py --out"
    ):
        DigitsDataset(data_root='nowhere', data_prefix='train')


def test_noise_has_the_given_deviation(digits, tmp_path):
    convert('digits', '--out', tmp_path / 'c', '--noise', 0)
    pairs = [
        (
            cv2.imread(str(p), 0),
            cv2.imread(str(tmp_path / 'c' / p.relative_to(digits)), 0),
        )
        for p in sorted(digits.rglob('*.png'))[:200]
    ]
    noisy, clean = (np.stack(p).astype(float) for p in zip(*pairs, strict=True))
    middle = np.abs(clean - 127.5) < 10  # two deviations to either end: little clipped
    assert (noisy - clean)[middle].std() == pytest.approx(56, rel=0.1)
