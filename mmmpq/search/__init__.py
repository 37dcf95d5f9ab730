"""Search spaces, and the discrete choice under budgets."""

from mmmpq import moved
from mmmpq.search.discretise import measure_gains, most_probable, spend
from mmmpq.search.sample import sample_choices
from mmmpq.search.solver import solve
from mmmpq.search.space import Group, SearchSpace
from mmmpq.search.start import STARTS, bias_logits, bounds, project
from mmmpq.search.tables import CostTable, CostTables, Prices, cost_tables, pricing

__all__ = [
    'STARTS',
    'CostTable',
    'CostTables',
    'Group',
    'Prices',
    'SearchSpace',
    'bias_logits',
    'bounds',
    'cost_tables',
    'measure_gains',
    'most_probable',
    'pricing',
    'project',
    'sample_choices',
    'solve',
    'spend',
]

__getattr__ = moved.names(__name__, Subnet='mmmpq.subnets', SubnetSpace='mmmpq.subnets')
