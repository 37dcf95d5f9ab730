"""The part of RKNN-Toolkit2's quantization.cfg that says which layers are not of w8a8.

``hybrid_quantization_step1`` writes that file, YAML, with the ranges of all tensors;
``custom_quantize_layers`` in it goes from the output of a layer to its type, and is to
be replaced by this one before ``hybrid_quantization_step2``. Source: RKNN-Toolkit2
2.5.0, rknn/api/rknn.py, and its examples/functions/hybrid_quant,
https://github.com/airockchip/rknn-toolkit2.
"""

from collections.abc import Mapping

import yaml

from mmmpq.export.vendors.graph import FloatGraph
from mmmpq.policy import FLOAT, Precision

TYPES = {FLOAT: 'float16', Precision(8, 16): 'int16'}


def config(
    graph: FloatGraph, precisions: Mapping[str, Precision]
) -> tuple[str, list[str]]:
    """The text of the file, and what is to be known of it."""
    layers = {
        node.output[0]: TYPES[precisions[name]]
        for name, nodes in graph.nodes.items()
        for node in nodes
        if precisions[name] in TYPES
    }
    text = yaml.safe_dump({'custom_quantize_layers': layers}, sort_keys=False)
    return text, []
