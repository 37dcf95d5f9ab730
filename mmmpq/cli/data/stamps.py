"""Makes the stamps detection set: real cut-outs on real photographs, COCO format."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from mmmpq.cli.data.debian import unpack
from mmmpq.cli.data.new_folder import make_folder
from mmmpq.cli.flags.data.stamps import PACKAGES, parse_args

# Class -> folders of stamps.
CLASSES = {
    'animal': ('animals',),
    'clothes': ('clothes',),
    'food': ('food',),
    'household': ('household', 'hobbies'),
    'plant': ('plants',),
    'sign': ('town/roadsigns', 'town/flags'),
    'vehicle': ('vehicles', 'military/vehicles'),
}
DRAWN = {'cartoon', 'plastic', 'toys'}
MATE = ('Aqua', 'Blinds', 'Dune', 'GreenMeadow', 'RainDrops', 'Storm', 'Wood')
PLASMA = (
    *('BytheWater', 'ColdRipple', 'DarkestHour', 'FallenLeaf', 'Grey', 'Kite'),
    *('OneStandsOut', 'Path', 'summer_1am'),
)
LOMIRI = ('Bridge', 'Dragonfly', 'aitzgorri', 'life', 'picosdeeuropa', 'sunset')
PHOTOS = (
    *(f'mate/nature/{name}.jpg' for name in MATE),
    *(f'wallpapers/{name}/contents/images/*' for name in PLASMA),
    *(f'backgrounds/{name}_by_*.jpg' for name in LOMIRI),
)
TEST_SHARE = 1 / 3  # of the cut-outs and of the photographs
SCALE = (0.2, 0.55)  # longer side of a cut-out in image sides
FILLED = 0.15  # least share of its box that a cut-out fills
SEEN = 0.5  # least share of a cut-out that later ones leave to see


def load_cutouts(files: Path) -> dict[str, list[tuple[str, Image.Image]]]:
    """For each class its cut-outs (object, RGBA), cut to their alpha, in order of name.

    Photographs of one kind of object ('gnu-stand', 'gnu-sitting') share its name.
    """
    folders = [p for p in sorted(files.rglob('stamps')) if p.is_dir()]
    if not folders:
        raise FileNotFoundError(f'--source: found no folder stamps in {files}')
    cutouts = {}
    for name, places in CLASSES.items():
        cutouts[name] = []
        paths = [p for each in places for p in (folders[0] / each).rglob('*.png')]
        for path in sorted(paths):
            if DRAWN & set(path.parts) or path.stem.endswith(('_mirror', '_flip')):
                continue
            image = Image.open(path).convert('RGBA')
            opaque = image.getchannel('A').point(lambda a: 255 * (a > 127))
            if not (box := opaque.getbbox()):
                continue
            filled = np.asarray(opaque.crop(box)).mean() / 255
            if filled >= FILLED and min(box[2] - box[0], box[3] - box[1]) >= 20:
                kind = next(w for w in re.split('[-_]', path.stem) if len(w) > 1)
                cutouts[name].append((kind.lower(), image.crop(box)))
        if len({kind for kind, _ in cutouts[name]}) < 2:
            raise ValueError(
                f"--source: found {len(cutouts[name])} cut-outs of class '{name}' in "
                f'{", ".join(places)}; two kinds are needed, one for each split'
            )
    return cutouts


def load_photos(files: Path, short: int) -> list[Image.Image]:
    """The photographs, RGB, whose shorter side has ``short`` px."""
    photos = []
    for pattern in PHOTOS:
        paths = [p for p in files.rglob(pattern) if p.suffix in ('.jpg', '.png')]
        if paths:
            largest = max(sorted(paths), key=lambda p: p.stat().st_size)
            image = Image.open(largest).convert('RGB')
            ratio = short / min(image.size)
            size = [max(short, round(ratio * n)) for n in image.size]
            photos.append(image.resize(size, Image.Resampling.LANCZOS))
    if len(photos) < 2:
        raise ValueError(
            f'--source: found {len(photos)} photographs in {files}; two are needed, '
            'one for each split'
        )
    return photos


def split(kinds: list[str], rng: np.random.Generator) -> list[bool]:
    """Whether each is for the test: whole kinds, until they are ``TEST_SHARE``."""
    chosen: set[str] = set()
    for kind in rng.permutation(sorted(set(kinds))):
        if sum(k in chosen for k in kinds) >= max(1, round(TEST_SHARE * len(kinds))):
            break
        chosen.add(str(kind))
    return [k in chosen for k in kinds]


def draw(
    photos: list[Image.Image],
    cutouts: dict[str, list[Image.Image]],
    size: int,
    objects: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[Image.Image, list[dict]]:
    """One image of ``size`` px, RGB, and its COCO annotations."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(size, min(photo.size) + 1))
    left, top = (int(rng.integers(n - side + 1)) for n in photo.size)
    image = photo.resize(
        (size, size), Image.Resampling.BOX, (left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    owner = np.zeros((size, size), np.uint8)  # which cut-out is seen; 0: none
    whole, classes = [], []
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        category = int(rng.integers(len(cutouts)))
        choices = list(cutouts.values())[category]
        cutout = choices[rng.integers(len(choices))]
        ratio = size * np.exp(rng.uniform(*np.log(SCALE))) / max(cutout.size)
        cutout = cutout.resize([max(2, round(ratio * n)) for n in cutout.size])
        if rng.random() < 0.5:
            cutout = ImageOps.mirror(cutout)
        x, y = (int(rng.integers(size - n + 1)) for n in cutout.size)
        mask = np.zeros((size, size), bool)
        alpha = np.asarray(cutout.getchannel('A'))
        mask[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha > 127
        left_over = np.bincount(owner[~mask], minlength=len(whole) + 1)[1:]
        if not mask.any() or np.any(left_over < SEEN * np.array(whole)):
            continue
        image.paste(cutout, (x, y), cutout)
        whole.append(int(mask.sum()))
        classes.append(category + 1)
        owner[mask] = len(whole)
    return image, [
        dict(category_id=category, iscrowd=0, **box_of(owner == i))
        for i, category in enumerate(classes, 1)
    ]


def box_of(mask: np.ndarray) -> dict:
    """Box (x, y, w, h) and area of a mask ``(H, W)``, in px."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    return dict(bbox=box, area=int(mask.sum()))


def write_split(folder: Path, name: str, photos, cutouts, args) -> None:
    """Writes the images and ``annotations/instances_<name>.json`` of one split."""
    rng = np.random.default_rng([args.seed, 1 + ('train', 'test').index(name)])
    (folder / name).mkdir()
    images, annotations = [], []
    for i in track(range(1, getattr(args, name) + 1), f'{name} images'):
        image, objects = draw(photos, cutouts, args.size, args.objects, rng)
        file = f'{i:06}.jpg'
        image.save(folder / name / file, quality=95, subsampling=0)
        images.append(dict(id=i, file_name=file, width=args.size, height=args.size))
        for annotation in objects:
            annotations.append(dict(id=len(annotations) + 1, image_id=i, **annotation))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    (folder / 'annotations' / f'instances_{name}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = {k: v for k, v in vars(args).items() if k not in ('out', 'source')}
    settings['objects'] = list(args.objects)

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            files = unpack(PACKAGES, args.source, Path(temporary))
            cutouts, photos = load_cutouts(files), load_photos(files, 4 * args.size)
        rng = np.random.default_rng([args.seed, 0])
        for_test = {c: split([k for k, _ in cutouts[c]], rng) for c in cutouts}
        photo_for_test = split([str(i) for i in range(len(photos))], rng)
        (folder / 'annotations').mkdir()
        for name in ('train', 'test'):
            mine = {
                c: [
                    image
                    for (_, image), test in zip(cutouts[c], for_test[c], strict=True)
                    if test == (name == 'test')
                ]
                for c in cutouts
            }
            behind = [
                photo
                for photo, test in zip(photos, photo_for_test, strict=True)
                if test == (name == 'test')
            ]
            counts = ', '.join(f'{c} {len(mine[c])}' for c in mine)
            print(f'{name}: {len(behind)} photographs; cut-outs: {counts}')
            write_split(folder, name, behind, mine, args)

    make_folder(args.out, dict(converter='stamps', version=1, **settings), fill)
