"""Makes the shapes detection set: COCO format, drawn from a seed."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from sklearn.datasets import load_sample_images

from mmmpq.cli.data.new_folder import make_folder
from mmmpq.cli.flags.data.shapes import parse_args

CLASSES = ('square', 'disc', 'triangle', 'star', 'cross', 'ring')
SUBPIXEL_BITS = 4  # fixed-point fraction of the coordinates that cv2 draws


def circle(radius: float, corners: int, start: float = 0.0) -> np.ndarray:
    """Corners ``(corners, 2)`` on a circle around the origin."""
    angles = start + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def outline(shape: str) -> np.ndarray:
    """The outline ``(K, 2)`` of a shape inside the unit circle.

    The ring is one polygon too: round outside, across a seam and back round inside.
    """
    up = -np.pi / 2  # rows count downwards
    if shape == 'square':
        return circle(1, 4, np.pi / 4)
    if shape == 'disc':
        return circle(1, 48)
    if shape == 'triangle':
        return circle(1, 3, up)
    if shape == 'star':
        points = np.empty((10, 2))
        points[::2], points[1::2] = circle(1, 5, up), circle(0.42, 5, up + np.pi / 5)
        return points
    if shape == 'cross':
        arm, end = 0.3, 0.95
        quarter = np.array([[end, -arm], [end, arm], [arm, arm]])
        turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate(
            [quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]
        )
    outer, inner = circle(1, 48), circle(0.55, 48)
    return np.concatenate([outer, outer[:1], inner[:1], inner[:0:-1], inner[:1]])


def area(points: np.ndarray) -> float:
    """Area of a polygon ``(K, 2)`` by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def covers(new: np.ndarray, old: np.ndarray) -> float:
    """Share of the box ``old`` that lies under the box ``new``, both (x, y, w, h)."""
    low = np.maximum(new[:2], old[:2])
    high = np.minimum(new[:2] + new[2:], old[:2] + old[2:])
    return float(np.prod(np.clip(high - low, 0, None)) / np.prod(old[2:]))


def draw(
    photos: list, size: int, max_shapes: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict]]:
    """One image ``(size, size, 3)``, BGR, and its COCO annotations."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(n - size + 1) for n in photo.shape[:2])
    image = np.ascontiguousarray(photo[top : top + size, left : left + size, ::-1])
    annotations = []
    for _ in range(rng.integers(1, max_shapes + 1)):
        category = int(rng.integers(len(CLASSES)))
        radius = size * rng.uniform(0.1, 0.24)
        centre = rng.uniform(radius, size - radius, 2)
        angle = rng.uniform(-1, 1) * np.pi / 12
        colour = rng.integers(0, 256, 3).tolist()
        turn = np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        points = centre + radius * outline(CLASSES[category]) @ turn
        box = np.concatenate([points.min(0), np.ptp(points, axis=0)])
        # A shape of which little is left to see would only teach to guess.
        if any(covers(box, np.array(a['bbox'])) > 0.35 for a in annotations):
            continue
        # cv2 puts the centre of a pixel at integers, COCO its upper left corner.
        fixed = np.round((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(image, [fixed], colour, cv2.LINE_AA, SUBPIXEL_BITS)
        annotations.append(
            dict(
                category_id=category + 1,
                bbox=box.round(2).tolist(),
                area=round(area(points), 2),
                segmentation=[points.round(2).ravel().tolist()],
                iscrowd=0,
            )
        )
    return image, annotations


def write_split(
    folder: Path, split: str, count: int, args: argparse.Namespace, photos: list
) -> None:
    """Writes the images and ``annotations/instances_<split>.json`` of one split."""
    rng = np.random.default_rng([args.seed, ('train', 'val').index(split)])
    (folder / split).mkdir()
    images, annotations = [], []
    for i in track(range(1, count + 1), f'{split} images'):
        image, shapes = draw(photos, args.size, args.max_shapes, rng)
        name = f'{i:06}.png'
        if not cv2.imwrite(str(folder / split / name), image):
            raise OSError(f'cannot write {folder / split / name}')
        images.append(dict(id=i, file_name=name, width=args.size, height=args.size))
        for annotation in shapes:
            annotations.append(dict(id=len(annotations) + 1, image_id=i, **annotation))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    (folder / 'annotations' / f'instances_{split}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = {k: v for k, v in vars(args).items() if k != 'out'}

    def fill(folder: Path) -> None:
        photos = load_sample_images().images
        (folder / 'annotations').mkdir()
        write_split(folder, 'train', args.train, args, photos)
        write_split(folder, 'val', args.val, args, photos)

    make_folder(args.out, dict(converter='shapes', version=1, **settings), fill)
