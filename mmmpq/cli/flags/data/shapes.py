"""Makes the shapes detection set: COCO format, drawn from a seed.

Squares, discs, triangles, stars, crosses and rings in random colours and sizes, a
little tilted, partly overlapping, on random crops of scikit-learn's two sample photos.
The later shape lies on top; boxes, areas and polygons are those of the whole shape.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=Path('data/shapes'), help='folder')
    parser.add_argument('--train', type=int, default=1000, help='training images')
    parser.add_argument('--val', type=int, default=200, help='validation images')
    parser.add_argument('--size', type=int, default=128, help='height and width, px')
    parser.add_argument('--max-shapes', type=int, default=5, help='most per image')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything drawn')
    args = parser.parse_args(argv)
    for name, least, most in (
        ('train', 1, None),
        ('val', 1, None),
        ('size', 32, 427),  # the photos are 427 px high
        ('max_shapes', 1, 20),
    ):
        value = getattr(args, name)
        if value < least or (most and value > most):
            wanted = f'from {least} to {most}' if most else f'at least {least}'
            parser.error(f'--{name.replace("_", "-")} {value}: must be {wanted}')
    return args
