"""Write a fine-tuned net as a file that is really smaller: packed, or ONNX."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import add_cfg_options, positive

AS_FLOAT = "model.quant.policy=W32A32 'model.quant.fixed.*=None'"  # as models.loading
SUFFIX = dict(packed='.safetensors', onnx='.onnx', qonnx='.qonnx.onnx')

EXAMPLE = f"""formats:
  packed   safetensors with every weight at its own width; `mmmpq.load_packed(FILE)`
           and `load_from='FILE'` restore the very same net
  onnx     QuantizeLinear and DequantizeLinear around int8 weights, for ONNX Runtime
           and others; needs pip install mmmpq[deploy]
  qonnx    Quant nodes of 1 to 8 bits, for FINN, hls4ml and other flows that build
           their hardware; needs pip install mmmpq[deploy]

examples:
  mmmpq export configs/bpnas/resnet_digits_finetune.py \\
      work_dirs/resnet_digits_finetune/epoch_20.pth --format packed
  mmmpq export configs/bpnas/retinanet_shapes_finetune.py CHECKPOINT \\
      --format packed onnx --fold --target onnxruntime --out work_dirs/shapes/shapes
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
        '--format', nargs='+', choices=SUFFIX, required=True, help='see below'
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
        help="of an image, to trace with (default: the policy's reference input, else "
        '3 224 224 for classifiers and 3 800 1333 for detectors)',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    ending = SUFFIX[args.format[0]]
    if args.target and 'onnx' not in args.format:
        parser.error('--target needs --format onnx')
    if args.out and len(args.format) == 1 and not args.out.endswith(ending):
        parser.error(f'--out {args.out}: {args.format[0]} files end in {ending}')
    return args
