"""A module of Python that builds a BitWidthConfig of Sony's MCT.

It is what ``CoreConfig(bit_width_config=...)`` takes, and has no format of a file. A
node is called as torch.fx calls the module, and '_bn' is put behind where MCT has
folded a BatchNorm into it. Source: model-compression-toolkit 2.6.1,
core/common/quantization/bit_width_config.py (set_manual_weights_bit_width),
core/common/network_editors/node_filters.py and
core/common/substitutions/batchnorm_folding.py.
"""

from collections.abc import Mapping

from mmmpq.policy import Precision

MODULE = '''\
"""Bits of weights, by mmmpq. For MCT's CoreConfig(bit_width_config=make())."""

from model_compression_toolkit.core import BitWidthConfig
from model_compression_toolkit.core.common.network_editors import NodeNameFilter

WEIGHTS = {{
{lines}
}}


def make(prefix=''):
    """The config; ``prefix`` is what stands before names, such as 'model_'."""
    config = BitWidthConfig()
    for name, bits in WEIGHTS.items():
        name = prefix + name
        node = NodeNameFilter(name) | NodeNameFilter(name + '_bn')
        config.set_manual_weights_bit_width(node, bits, 'weight')
    return config
'''


def module(precisions: Mapping[str, Precision]) -> tuple[str, list[str]]:
    """The text of the file, and what is to be known of it."""
    lines = (
        f'    {name.replace(".", "_")!r}: {precision.w_bits},'
        for name, precision in precisions.items()
    )
    return MODULE.format(lines='\n'.join(lines)), []
