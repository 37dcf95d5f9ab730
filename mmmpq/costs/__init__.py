"""MACs per layer at a reference input, costs of precisions, budgets, hardware."""

from mmmpq.costs.budget import Budget
from mmmpq.costs.cost import ActivationBytes, BOPs, Cost, WeightBytes, total_cost
from mmmpq.costs.hardware import Hardware
from mmmpq.costs.latency import Latency
from mmmpq.costs.layer_types import layer_type
from mmmpq.costs.profile import LayerProfile, profile, reference_input_shape
from mmmpq.costs.reference import Reference

__all__ = [
    'ActivationBytes',
    'BOPs',
    'Budget',
    'Cost',
    'Hardware',
    'Latency',
    'LayerProfile',
    'Reference',
    'WeightBytes',
    'layer_type',
    'profile',
    'reference_input_shape',
    'total_cost',
]
