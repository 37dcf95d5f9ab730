"""Penalties on the architecture: (probabilities, E[B] / B, progress) -> scalar."""

from mmmpq.losses.barrier import BarrierPenalty, barrier
from mmmpq.losses.prob1 import Prob1Regularizer, prob1

__all__ = ['BarrierPenalty', 'Prob1Regularizer', 'barrier', 'prob1']
