"""Print what a config's model costs, per layer, and what its budgets leave open."""

import argparse

from mmmpq.cli.flags.common import add_cfg_options, add_reference_arguments

EXAMPLE = """example:
  mmmpq cost configs/bpnas/retinanet_r50_coco.py --policy W4A4
  mmmpq cost configs/bpnas/resnet18_imagenet.py \\
      --hardware configs/_base_/hardware/matched_248.json --json
  mmmpq cost configs/bpnas/resnet18_imagenet.py --policy W4A4 --chip bit_fusion

Without --policy, layers that are to be searched show their largest candidate.
Float layers have 32 bits. Budgets of a search are checked as the search will check
them: what it would refuse is an error here."""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of mmdet, mmpretrain, mmseg or mmmpq')
    parser.add_argument(
        '--policy', help='a uniform precision such as W4A4, or a policy.json'
    )
    parser.add_argument(
        '--hardware', help='profile that restricts candidates: hailo, …, or a JSON file'
    )
    parser.add_argument(
        '--chip',
        help='time and energy on it, too: bit_fusion, …, or a JSON file',
    )
    add_reference_arguments(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_cfg_options(parser)
    return parser.parse_args(argv)
