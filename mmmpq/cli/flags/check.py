"""Tell per layer whether a target computes it in integers, in float, or not at all."""

import argparse
from collections.abc import Sequence

from mmmpq.cli.flags.common import add_cfg_options, add_reference_arguments

EXAMPLE = """examples:
  mmmpq check configs/bpnas/retinanet_shapes.py --target tensorrt
  mmmpq check net.onnx --target onnxruntime
  mmmpq check net.qonnx.onnx --target finn --json check.json
  mmmpq check configs/bpnas/resnet_digits.py --target hailo --policy W4A8

A config is checked before training, without data: each layer at each precision that it
may take; a float one as if it were W8A8. A file may be anybody's: a graph of
QuantizeLinear and DequantizeLinear, or for finn one of QONNX.

The status is 0 where all quantized layers are computed in integers, 1 where one is not,
2 for what cannot be checked."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config', metavar='CONFIG|FILE', help='config of a net, or an ONNX file'
    )
    parser.add_argument(
        '--target',
        required=True,
        metavar='NAME',
        help='a runtime: onnxruntime, openvino, tensorrt, generic or finn; hardware: '
        'coreml, hailo, htp, imx500, rk3588 or tda4',
    )
    parser.add_argument(
        '--policy',
        help='of a config: a uniform precision such as W4A4, or a policy.json',
    )
    add_reference_arguments(parser)
    parser.add_argument('--json', metavar='FILE', help='write all of it as JSON, too')
    add_cfg_options(parser)
    return parser.parse_args(argv)
