"""Penalties on the architecture: (probabilities, E[B] / B, progress) -> scalar."""

from mmmpq.losses.barrier import BarrierPenalty, barrier
from mmmpq.losses.complexity import ComplexityPenalty
from mmmpq.losses.cost_aware import CostAwareLoss, cost_factor
from mmmpq.losses.objective import Objective, Terms
from mmmpq.losses.penalty import Penalty
from mmmpq.losses.prob1 import Prob1Regularizer, prob1

__all__ = [
    'BarrierPenalty',
    'ComplexityPenalty',
    'CostAwareLoss',
    'Objective',
    'Penalty',
    'Prob1Regularizer',
    'Terms',
    'barrier',
    'cost_factor',
    'prob1',
]
