"""Mixed precision without training: in minutes, from some hundred images."""

from mmmpq.post_training.pipeline import Result, prepare, ptq, score, settle

__all__ = ['Result', 'prepare', 'ptq', 'score', 'settle']
