"""Write a fine-tuned net as a file that is really smaller: packed, or ONNX."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import add_cfg_options, positive

AS_FLOAT = "model.quant.policy=W32A32 'model.quant.fixed.*=None'"  # as models.loading
SUFFIX = dict(
    packed='.safetensors',
    onnx='.onnx',
    qonnx='.qonnx.onnx',
    float='.float.onnx',
    aimet='.encodings',
    hailo='.alls',
    rknn='.rknn.yaml',
    mct='.mct.py',
    coreml='.coreml.yaml',
)
OURS = 'packed', 'onnx', 'qonnx'  # the others are of vendors.write
NAME_TENSORS = {'aimet', 'hailo', 'rknn'}  # of the float net

EXAMPLE = f"""formats:
  packed   safetensors with every weight at its own width; `mmmpq.load_packed(FILE)`
           and `load_from='FILE'` restore the very same net
  onnx     QuantizeLinear and DequantizeLinear around int8 weights, for ONNX Runtime
           and others; needs pip install mmmpq[deploy]
  qonnx    Quant nodes of 1 to 8 bits, for FINN, hls4ml and other flows that build
           their hardware; needs pip install mmmpq[deploy]
  float    the float net, weights on their levels, whose tensors the next three name
  aimet    encodings with ranges, for AIMET and for QNN's quantization overrides
  hailo    model script for Hailo's Dataflow Compiler
  rknn     layers that RKNN-Toolkit2's hybrid quantization leaves at 16 bits
  mct      bits of weights for Sony's model compression toolkit
  coreml   recipe of coremltools, a LinearQuantizerConfig

All but packed, onnx and qonnx fold BatchNorms. A precision that the vendor lacks is an
error that says what it has; --round-up takes the next one.

--end-to-end makes of a one-stage detector (RetinaNet, FCOS, ATSS, RTMDet, YOLOX) one
file that takes an image and gives boxes, for examples/detect_onnx.py and others: one
image of a fixed size at a time, --input-shape. What the preprocessor does, decoding and
NMS are in it, with the settings of model.test_cfg.

examples:
  mmmpq export configs/bpnas/resnet_digits_finetune.py \\
      work_dirs/resnet_digits_finetune/epoch_20.pth --format packed
  mmmpq export configs/bpnas/retinanet_shapes_finetune.py CHECKPOINT \\
      --format packed onnx --fold --target onnxruntime --out work_dirs/shapes/shapes
  mmmpq export configs/bpnas/retinanet_shapes_finetune.py CHECKPOINT \\
      --out shapes.onnx --end-to-end --input-shape 3 128 128
  mmmpq export configs/bpnas/retinanet_shapes_finetune.py \\
      work_dirs/retinanet_shapes_float/epoch_12.pth --format onnx --fold \\
      --cfg-options {AS_FLOAT}

CONFIG is the one of the fine-tuning, whose quant.policy names the policy. The last
example writes a float net to compare with. Beside FILE goes sizes.json, with the bytes
of every layer."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a fixed net')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='its .pth, or a packed .safetensors'
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=SUFFIX,
        help='see below (default: by the ending of --out)',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='(default: CHECKPOINT with another ending; with two formats, each has its '
        'own)',
    )
    parser.add_argument(
        '--fold',
        action='store_true',
        help='fold every BatchNorm that can be into weights, scales and biases',
    )
    parser.add_argument(
        '--round-up',
        action='store_true',
        help="in a vendor's file: the next precision where the vendor lacks one. "
        'Weights stay what they are, inputs get more levels in their range',
    )
    parser.add_argument(
        '--opset', type=int, default=21, metavar='N', help='of onnx (default: 21)'
    )
    parser.add_argument(
        '--containers',
        choices=['8bit', 'auto'],
        default='8bit',
        help='types of onnx: of 8 bits everywhere, which runtimes compute in integers, '
        'or of 4 where they suffice, for the smallest file, which is slower than float '
        '(default: 8bit)',
    )
    parser.add_argument(
        '--target',
        metavar='NAME',
        help='onnx for a runtime: onnxruntime, openvino, tensorrt or generic; what '
        'stands between layers is rounded to 8 bits too, and computed in integers',
    )
    parser.add_argument(
        '--batches',
        type=positive,
        default=4,
        metavar='N',
        help='of the train_dataloader, for the ranges of --target (default: 4)',
    )
    parser.add_argument(
        '--vnni',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='onnx for processors with VNNI, or no x86: faster at W8A8. Others would '
        'cut the integer sums there. By default the weights of such layers are '
        'unsigned, which is exact on every processor',
    )
    parser.add_argument(
        '--input-shape',
        type=positive,
        nargs=3,
        metavar=('C', 'H', 'W'),
        help='of an image, to trace with; with --end-to-end that of every image '
        "(default: the policy's reference input, else "
        '3 224 224 for classifiers and 3 800 1333 for detectors)',
    )
    parser.add_argument(
        '--end-to-end',
        action='store_true',
        help='onnx of a one-stage detector with preprocessing, decoding and NMS, for '
        'one image of --input-shape at a time',
    )
    parser.add_argument(
        '--normalize',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='with --end-to-end: whether the file takes images as the test pipeline '
        'gives them, in the order of its channels and from 0 to 255, or, with '
        '--no-normalize, as the preprocessor does, padded (default: yes)',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if not args.format:
        kinds = [k for k, e in SUFFIX.items() if (args.out or '').endswith(e)]
        if not kinds:
            parser.error(
                f'--format: found none; accepted are {", ".join(SUFFIX)}, or an --out '
                f'that ends in {", ".join(SUFFIX.values())}'
            )
        args.format = kinds[-1:]
    ending = SUFFIX[args.format[0]]
    for flag, given in (('--target', args.target), ('--end-to-end', args.end_to_end)):
        if given and 'onnx' not in args.format:
            parser.error(f'{flag} needs --format onnx')
    if not (args.normalize or args.end_to_end):
        parser.error('--no-normalize needs --end-to-end')
    if args.out and len(args.format) == 1 and not args.out.endswith(ending):
        parser.error(f'--out {args.out}: {args.format[0]} files end in {ending}')
    if NAME_TENSORS.intersection(args.format):
        args.format = list(dict.fromkeys([*args.format, 'float']))
    return args
