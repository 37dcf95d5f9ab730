"""The sets made of Debian packages, from small files of the same formats."""

import gzip
import importlib
import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from mmmpq.cli.data import debian, stamps


def convert(name, *args):
    main = importlib.import_module(f'mmmpq.cli.data.{name}').main
    main([str(arg) for arg in args])


def idx(array):
    """An array of bytes as an idx file."""
    head = bytes([0, 0, 8, array.ndim])
    return head + np.array(array.shape, '>i4').tobytes() + array.tobytes()


@pytest.fixture
def clothes(tmp_path):
    """The four files, ten photos each."""
    folder = tmp_path / 'clothes/usr/share'
    folder.mkdir(parents=True)
    photos = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for split in ('train', 't10k'):
        for kind, array in (
            ('images-idx3', photos),
            ('labels-idx1', np.arange(10, dtype=np.uint8)),
        ):
            file = folder / f'{split}-{kind}-ubyte.gz'
            file.write_bytes(gzip.compress(idx(array)))
    return tmp_path / 'clothes', photos


def test_fashion(clothes, tmp_path):
    pytest.importorskip('mmpretrain')
    from mmmpq.datasets import FashionDataset

    source, photos = clothes
    convert('fashion', '--out', tmp_path / 'out', '--source', source)
    for test_mode in (False, True):
        found = FashionDataset(data_root=str(tmp_path / 'out'), test_mode=test_mode)
        assert len(found) == 10
        np.testing.assert_array_equal(found.get_data_info(3)['img'], photos[3])
        assert [found.get_data_info(i)['gt_label'] for i in range(10)] == [*range(10)]
    with pytest.raises(
        FileNotFoundError, match=r"data_root='nowhere'.*converters/fashion.py --out"
    ):
        FashionDataset(data_root='nowhere')


def test_fashion_lacks_a_file(clothes, tmp_path):
    source, _ = clothes
    next(source.rglob('t10k-labels*')).unlink()
    with pytest.raises(
        FileNotFoundError, match=r'--source .*no t10k-labels-idx1-ubyte'
    ):
        convert('fashion', '--out', tmp_path / 'out', '--source', source)
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(not shutil.which('dpkg-deb'), reason='needs dpkg-deb')
def test_a_package(clothes, tmp_path):
    source, _ = clothes
    (source / 'DEBIAN').mkdir()
    (source / 'DEBIAN/control').write_text(
        'Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\n'
        'Maintainer: nobody <a@b.invalid>\nDescription: test\n'
    )
    archive = tmp_path / 'archives/dataset-fashion-mnist_1_all.deb'
    archive.parent.mkdir()
    subprocess.run(['dpkg-deb', '-b', source, archive], check=True)
    for i, given in enumerate((archive, archive.parent)):
        convert('fashion', '--out', tmp_path / f'{i}', '--source', given)
        assert (tmp_path / f'{i}/train-labels-idx1-ubyte').stat().st_size == 18
    with pytest.raises(ValueError, match='needed is tuxpaint-stamps-default, mate'):
        convert('stamps', '--out', tmp_path / 'out', '--source', archive)
    archive.write_bytes(b'damaged')
    with pytest.raises(ValueError, match=r'--source .*all.deb: dpkg-deb.*failed'):
        convert('fashion', '--out', tmp_path / 'out', '--source', archive)


def test_without_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, 'which', lambda name: None)
    with pytest.raises(FileNotFoundError, match='--source: found no apt-get'):
        convert('fashion', '--out', tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='nowhere: does not exist'):
        convert('fashion', '--out', tmp_path / 'out', '--source', 'nowhere')
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Cut-outs, each of one bright colour, and dark photographs."""
    root = tmp_path_factory.mktemp('pictures')
    colours = iter(range(1, 255))
    for places in stamps.CLASSES.values():
        folder = root / 'stamps' / places[0] / 'x'
        (folder / 'cartoon').mkdir(parents=True)
        for name in ('one', 'two-left', 'two-right', 'three', 'cartoon/four'):
            image = np.zeros((50, 60, 4), np.uint8)
            image[10:40, 5:55] = (255, next(colours), 200, 255)
            Image.fromarray(image).save(folder / f'{name}.png')
    (root / 'mate/nature').mkdir(parents=True)
    for i, name in enumerate(('Aqua', 'Blinds', 'Dune', 'Storm')):
        image = np.full((80, 100, 3), 10 + 20 * i, np.uint8)
        Image.fromarray(image).save(root / f'mate/nature/{name}.jpg')
    return root


@pytest.fixture(scope='module')
def made(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'stamps'
    convert(*stamps_words(pictures, out))
    return out


def stamps_words(source, out, *more):
    counts = ('--train', 12, '--test', 6, '--size', 64)
    return ('stamps', '--source', source, '--out', out, *counts, *more)


def test_stamps_boxes_are_what_is_seen(made):
    """A cut-out is filled with red 255, which no photograph has."""
    for split, count in (('train', 12), ('test', 6)):
        found = json.loads((made / f'annotations/instances_{split}.json').read_text())
        assert [c['name'] for c in found['categories']] == list(stamps.CLASSES)
        assert len(found['images']) == count
        for image in found['images']:
            mine = [a for a in found['annotations'] if a['image_id'] == image['id']]
            assert 1 <= len(mine) <= 5
            pixels = cv2.imread(str(made / split / image['file_name']))
            assert pixels.shape == (64, 64, 3)
            covered = np.zeros((64, 64), bool)
            for a in mine:
                x, y, w, h = a['bbox']
                assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64
                assert 0 < a['area'] <= w * h
                covered[y : y + h, x : x + w] = True
            red = pixels[..., 2] > 150
            assert not red[
                ~cv2.dilate(covered.astype(np.uint8), None).astype(bool)
            ].any()
            assert red.sum() == pytest.approx(sum(a['area'] for a in mine), rel=0.15)


def test_stamps_split_by_object_and_photograph(pictures, monkeypatch, tmp_path):
    seen = {}

    def note(folder, name, photos, cutouts, args):
        seen[name] = (
            {np.asarray(p)[0, 0, 0] for p in photos},
            {c: {np.asarray(i)[9, 9, 1] for i in cutouts[c]} for c in cutouts},
        )

    monkeypatch.setattr(stamps, 'write_split', note)
    convert(*stamps_words(pictures, tmp_path / 'out'))
    (photos, cutouts), (other_photos, other_cutouts) = seen['train'], seen['test']
    assert len(photos | other_photos) == 4 and not photos & other_photos
    for name in stamps.CLASSES:
        assert len(cutouts[name] | other_cutouts[name]) == 4  # no cartoon
        assert not cutouts[name] & other_cutouts[name]
        # by name one, two-left, two-right, three: colours count up in that order
        pair = sorted(cutouts[name] | other_cutouts[name])[1:3]
        assert set(pair) <= cutouts[name] or set(pair) <= other_cutouts[name]


def test_stamps_depend_on_the_seed_alone(pictures, made, tmp_path):
    def contents(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*.*')}

    convert(*stamps_words(pictures, tmp_path / 'a'))
    assert contents(tmp_path / 'a') == contents(made)
    convert(*stamps_words(pictures, tmp_path / 'a', '--seed', 1))
    assert contents(tmp_path / 'a') != contents(made)


def test_stamps_dataset(made):
    pytest.importorskip('mmdet')
    from mmmpq.datasets import StampsDataset

    dataset = StampsDataset(
        data_root=str(made),
        ann_file='annotations/instances_test.json',
        data_prefix=dict(img='test/'),
    )
    assert len(dataset) == 6
    assert dataset.metainfo['classes'] == tuple(stamps.CLASSES)
    assert len(dataset.metainfo['palette']) == len(stamps.CLASSES)
    with pytest.raises(
        FileNotFoundError, match=r"data_root='nowhere'.*converters/stamps.py --out"
    ):
        StampsDataset(data_root='nowhere', ann_file='annotations/x.json')


def test_stamps_refuse(pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert(*stamps_words(pictures, tmp_path / 'x', '--objects', 3, 2))
    assert '--objects 3 2: must be two rising numbers' in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match='--source: found no folder stamps'):
        convert(*stamps_words(tmp_path, tmp_path / 'x'))
    assert not (tmp_path / 'x').exists()
