"""The relaxation of a supernet whose subnets are all trained alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.layers.relaxation import Relaxation
from mmmpq.policy import Precision
from mmmpq.registry import RELAXATIONS


@RELAXATIONS.register_module()
class UniformSampling(Relaxation):
    """p_j = 1 / m, always: nothing is searched while the net trains.

    Made for mixing 'sampled': the net computes on the path ``choice``, that of
    :meth:`draw` or of a subnet (:class:`mmmpq.search.SubnetSpace`).

    Source: BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer,
    2021, arXiv 2105.08952.

    Args:
        candidates: The m candidate precisions.
        group: Name of the group, for logs and reports.
    """

    def __init__(self, candidates: Sequence[Precision], group: str = '') -> None:
        super().__init__(candidates, group=group)

    def probs(self) -> Tensor:
        return torch.full_like(self.logits, 1 / self.logits.numel())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        state_dict[f'{prefix}logits'] = self.logits  # those of any number are as good
        super()._load_from_state_dict(state_dict, prefix, *args)

    def draw(self, generator: torch.Generator) -> None:
        self.choice = int(torch.randint(len(self.candidates), (), generator=generator))
