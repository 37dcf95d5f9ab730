"""MACs per layer at a reference input, costs of precisions, budgets, hardware."""

from mmmpq import moved
from mmmpq.costs.budget import Budget
from mmmpq.costs.chip_cost import ChipEnergy, ChipLatency
from mmmpq.costs.cost import ActivationBytes, BOPs, Cost, WeightBytes, total_cost
from mmmpq.costs.cost_at import CostAt
from mmmpq.costs.hardware import Hardware
from mmmpq.costs.latency import Latency
from mmmpq.costs.layer_types import layer_type
from mmmpq.costs.profile import LayerProfile, profile, reference_input_shape

__all__ = [
    'ActivationBytes',
    'BOPs',
    'Budget',
    'ChipEnergy',
    'ChipLatency',
    'Cost',
    'CostAt',
    'Hardware',
    'Latency',
    'LayerProfile',
    'WeightBytes',
    'layer_type',
    'profile',
    'reference_input_shape',
    'total_cost',
]

__getattr__ = moved.names(__name__, Reference='mmmpq.costs:CostAt')
