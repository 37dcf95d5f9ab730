"""A recipe of coremltools: a LinearQuantizerConfig as YAML.

``LinearQuantizerConfig.from_yaml(FILE)`` reads it, LinearQuantizer trains or calibrates
with it. Modules have the names of the model; what is not named stays float. Source:
coremltools 9.0, optimize/torch/optimization_config.py and
optimize/torch/quantization/quantization_config.py.
"""

from collections.abc import Mapping

import yaml

from mmmpq.policy import FLOAT, Precision

WEIGHTS = {4: 'qint4', 8: 'qint8', 32: 'float32'}
INPUTS = {8: 'quint8', 32: 'float32'}


def recipe(precisions: Mapping[str, Precision]) -> tuple[str, list[str]]:
    """The text of the file, and what is to be known of it."""
    modules = {
        name: {
            'weight_dtype': WEIGHTS[precision.w_bits],
            'activation_dtype': INPUTS[precision.a_bits],
        }
        for name, precision in precisions.items()
        if precision != FLOAT
    }
    document = {'global_config': None, 'module_name_configs': modules}
    return yaml.safe_dump(document, sort_keys=False), [
        'activation_dtype is that of what a module gives, not of what it takes'
    ]
