"""A config of a toolbox, on made data that a CPU trains on in seconds.

Nothing of the model changes. There are two random images, each with two things in it;
sizes in pipelines shrink, and nothing is downloaded.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from mmmpq.models.build import _without_pretrained
from mmmpq.user_config import dicts, type_name

IMAGES, SIDE = 2, 160
SIZES = ('crop_size', 'scale', 'scales', 'img_scale', 'size', 'random_size_range')
WRAPPED = ('dataset', 'datasets')
LABELS = dict(bbox='bbox', segm='segm', proposal='proposal')


def make_coco(folder: Path, classes: Sequence[str]) -> None:
    """Images, boxes, masks, maps of stuff and proposals, in the format of COCO."""
    rng = np.random.default_rng(0)
    images, things, proposals = [], [], {}
    for kind in ('images', 'maps'):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        name = f'{i}.png'
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        stuff = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(2):
            x, y = rng.integers(0, SIDE // 2, 2).tolist()
            w, h = rng.integers(SIDE // 4, SIDE // 2, 2).tolist()
            pixels[y : y + h, x : x + w] //= 3
            stuff[y : y + h, x : x + w] = 1
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            thing = dict(id=len(things) + 1, image_id=i, category_id=1, iscrowd=0)
            thing.update(bbox=[x, y, w, h], area=w * h, segmentation=[corners])
            things.append(thing)
        cv2.imwrite(str(folder / 'images' / name), pixels)
        cv2.imwrite(str(folder / 'maps' / name), stuff)
        images.append(dict(id=i, file_name=name, width=SIDE, height=SIDE))
        boxes = np.array([t['bbox'] for t in things[-2:]] * 10, np.float32)
        boxes[:, 2:] += boxes[:, :2]
        found = dict(bboxes=boxes, scores=np.linspace(1, 0.1, 20, dtype=np.float32))
        proposals[f'images/{name}'] = found
    coco = dict(images=images, annotations=things)
    coco['categories'] = [dict(id=i + 1, name=n) for i, n in enumerate(classes)]
    (folder / 'coco.json').write_text(json.dumps(coco))
    (folder / 'proposals.pkl').write_bytes(pickle.dumps(proposals))


def make_classes(folder: Path, _: Sequence[str]) -> None:
    """Images and a list of their classes."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        pixels = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), pixels // (1 + i % 2))
    lines = [f'{i}.png {i % 2}\n' for i in range(IMAGES)]
    (folder / 'classes.txt').write_text(''.join(lines))


def tiny(config: Path, folder: Path, side: int) -> Config:
    """The config with made data, in ``folder``, in place of its own."""
    cfg = Config.fromfile(config)
    detects = cfg.get('default_scope', 'mmdet') == 'mmdet'
    most = max((d.get('num_classes') or 1 for d in dicts(cfg.model)), default=1)
    classes = tuple(f'thing {i}' for i in range(most))
    (make_coco if detects else make_classes)(folder, classes)
    made = partial(_coco if detects else _classes, folder=folder, classes=classes)
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key in ('prefetch_factor', 'timeout'):
            loader.pop(key, None)
        loader.update(num_workers=0, persistent_workers=False)
        if loader.get('batch_size', 1) != 1 or not detects:
            loader.batch_size = 2
        loader.dataset = _made(loader.dataset, made)
    for split in ('val', 'test'):
        if evaluator := cfg.get(f'{split}_evaluator'):
            cfg[f'{split}_evaluator'] = _evaluator(evaluator, folder, detects)
    if detects:
        for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            _shrink(cfg.get(part), side)
        _shrink(cfg.get('custom_hooks'), side)
        _shrink(cfg.model.get('data_preprocessor'), side)
    if (train := cfg.get('train_cfg')) and 'val_interval' in train:
        train.val_interval = 1000  # the last epoch is tested all the same
    _without_pretrained(cfg.model)
    _without_pretrained(cfg.get('custom_hooks'))
    cfg.load_from, cfg.resume = None, False
    cfg.visualizer = dict(type='Visualizer', vis_backends=[])
    cfg.randomness = dict(seed=0)
    hooks = cfg.get('default_hooks') or {}
    if 'checkpoint' in hooks:
        hooks.checkpoint = dict(type='CheckpointHook', interval=1000)  # and the last
    return cfg


def reference(cfg: Config, side: int) -> tuple[int, int, int]:
    """An image as the pipelines of ``cfg`` make them, for costs."""
    if cfg.get('default_scope', 'mmdet') == 'mmdet':
        return 3, side, side
    channels = 1 if 'grayscale' in str(cfg.get('train_dataloader')) else 3
    for split in ('test', 'train'):
        data = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        for step in [d for d in dicts(data.get('pipeline')) if 'type' in d][::-1]:
            found = next((step[k] for k in SIZES if k in step), None)
            if isinstance(found, (list, tuple)):
                found = found[0]
            if isinstance(found, int) and found >= 28:
                return channels, found, found
    return channels, 224, 224


def _made(dataset: dict, made: Callable[[dict], dict]) -> dict:
    """A dataset, or what it wraps, on made data; its pipeline stays."""
    for key in WRAPPED:
        inner = dataset.get(key)
        if isinstance(inner, dict):
            dataset[key] = _made(inner, made)
        elif isinstance(inner, (list, tuple)):
            dataset[key] = [_made(d, made) for d in inner]
    if 'times' in dataset:
        dataset['times'] = 1
    return dataset if any(k in dataset for k in WRAPPED) else made(dataset)


def _coco(dataset: dict, folder: Path, classes: Sequence[str]) -> dict:
    new = dict(
        type='CocoDataset',
        data_root=f'{folder}/',
        ann_file='coco.json',
        data_prefix=dict(img='images/', seg='maps/'),
        metainfo=dict(classes=classes),
        pipeline=dataset.get('pipeline', []),
    )
    for key in ('filter_cfg', 'test_mode', 'return_classes'):
        if key in dataset:
            new[key] = dataset[key]
    if 'proposal_file' in dataset:
        new['proposal_file'] = 'proposals.pkl'
    return new


def _classes(dataset: dict, folder: Path, classes: Sequence[str]) -> dict:
    pipeline = list(dataset.get('pipeline', []))
    if type_name(dataset) in ('MNIST', 'FashionMNIST', 'CIFAR10', 'CIFAR100'):
        color = 'grayscale' if 'MNIST' in type_name(dataset) else 'color'
        pipeline.insert(0, dict(type='LoadImageFromFile', color_type=color))
    return dict(
        type='CustomDataset',
        data_root=str(folder),
        ann_file='classes.txt',
        data_prefix='images',
        pipeline=pipeline,
    )


def _evaluator(evaluator: Any, folder: Path, detects: bool) -> Any:
    if not detects:
        return evaluator
    metrics = [m for d in dicts(evaluator) for m in _listed(d.get('metric'))]
    known = [m for m in dict.fromkeys(metrics) if m in LABELS] or ['bbox']
    return dict(type='CocoMetric', ann_file=f'{folder}/coco.json', metric=known)


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shrink(part: Any, side: int) -> None:
    """Sizes of images in transforms: ``side`` at most."""
    for found in dicts(part):
        for key in SIZES:
            if key in found:
                found[key] = _capped(found[key], side)


def _capped(value: Any, most: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_capped(v, most) for v in value)
    return min(value, most) if isinstance(value, (int, float)) else value
