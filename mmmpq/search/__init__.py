"""The search: its space, budgets, start and steps, and the discrete choice."""

from mmmpq import moved
from mmmpq.search.discretise import measure_gains, most_probable, spend
from mmmpq.search.history import History, record_of
from mmmpq.search.problem import Problem
from mmmpq.search.sample import sample_choices
from mmmpq.search.search import Search
from mmmpq.search.settings import Settings
from mmmpq.search.solver import solve
from mmmpq.search.space import Group, SearchSpace
from mmmpq.search.start import STARTS, bias_logits, bounds, project
from mmmpq.search.tables import Table, Tables, cost_tables, pricing

__all__ = [
    'STARTS',
    'Group',
    'History',
    'Problem',
    'Search',
    'SearchSpace',
    'Settings',
    'Table',
    'Tables',
    'bias_logits',
    'bounds',
    'cost_tables',
    'measure_gains',
    'most_probable',
    'pricing',
    'project',
    'record_of',
    'sample_choices',
    'solve',
    'spend',
]

__getattr__ = moved.names(
    __name__,
    CostTable='mmmpq.search:Table',
    CostTables='mmmpq.search:Tables',
    Prices='mmmpq.search:Table',
    Subnet='mmmpq.subnets',
    SubnetSpace='mmmpq.subnets',
)
