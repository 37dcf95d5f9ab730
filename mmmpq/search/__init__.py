"""Search spaces, and the discrete choice under budgets."""

from mmmpq.search.discretise import measure_gains, most_probable, spend
from mmmpq.search.sample import sample_choices
from mmmpq.search.solver import solve
from mmmpq.search.space import CostTable, Group, Prices, SearchSpace, cost_tables
from mmmpq.search.start import STARTS, bias_logits, bounds, project
from mmmpq.search.subnets import Subnet, SubnetSpace

__all__ = [
    'STARTS',
    'CostTable',
    'Group',
    'Prices',
    'SearchSpace',
    'Subnet',
    'SubnetSpace',
    'bias_logits',
    'bounds',
    'cost_tables',
    'measure_gains',
    'most_probable',
    'project',
    'sample_choices',
    'solve',
    'spend',
]
