"""Supernets whose architecture is elastic, beside their precisions."""

from importlib.util import find_spec

__all__ = []

if find_spec('mmpretrain'):
    from mmmpq.models.elastic.count import count_subnets
    from mmmpq.models.elastic.mobilenetv3 import SubnetMobileNetV3
    from mmmpq.models.elastic.preprocessor import (
        ElasticClsDataPreprocessor,
        SubnetClsDataPreprocessor,
    )
    from mmmpq.models.elastic.supernet import ElasticMobileNetV3
    from mmmpq.models.elastic.weights import sort_channels

    __all__ += [
        'ElasticClsDataPreprocessor',
        'ElasticMobileNetV3',
        'SubnetClsDataPreprocessor',
        'SubnetMobileNetV3',
        'count_subnets',
        'sort_channels',
    ]
