"""Boxes of an image, with a file of `mmmpq export --end-to-end` and ONNX Runtime alone.

python examples/detect_onnx.py net.onnx street.jpg --out boxes.png
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model')
    parser.add_argument('image')
    parser.add_argument('--score', type=float, default=0.3, help='(default: 0.3)')
    parser.add_argument('--out', metavar='FILE.png', help='draw the boxes here')
    args = parser.parse_args(argv)
    session = onnxruntime.InferenceSession(args.model)
    about = json.loads(session.get_modelmeta().custom_metadata_map['mmmpq-onnx'])
    if not about['end_to_end'] or not about['normalize']:
        parser.error(f'{args.model}: accepted is a file of mmmpq export --end-to-end')
    _, height, width = about['input_shape']
    picture = Image.open(args.image).convert('RGB')
    share = min(height / picture.height, width / picture.width)
    size = [max(1, round(side * share)) for side in picture.size]
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))[..., ::-1]
    whole = np.empty((height, width, 3), np.float32)  # BGR
    whole[:] = about['preprocessing']['fill']
    whole[: size[1], : size[0]] = pixels
    whole = np.ascontiguousarray(whole.transpose(2, 0, 1)[None])
    found = []
    for box, score, label in zip(*session.run(None, {'images': whole}), strict=True):
        if score >= args.score:
            name = about['classes'][label] if about['classes'] else str(label)
            found.append((name, float(score), (box / share).tolist()))
            print(f'{name} {score:.2f}', *(f'{side:.1f}' for side in found[-1][2]))
    if args.out:
        draw = ImageDraw.Draw(picture)
        for name, score, box in found:
            draw.rectangle(box, outline='red')
            draw.text(box[:2], f'{name} {score:.2f}', fill='red')
        picture.save(args.out)
    return found


if __name__ == '__main__':
    main()
