"""What every penalty of a search is asked for."""

from collections.abc import Sequence

from torch import Tensor, nn


class Penalty(nn.Module):
    """A term of the objective beside the task loss, or a factor of it.

    Attributes:
        name: In logs and records.
        multiplies: Whether it is a factor.
    """

    name = ''
    multiplies = False

    def forward(
        self, probs: Sequence[Tensor], ratios: Tensor, progress: float
    ) -> Tensor:
        """Its value, a scalar.

        Args:
            probs: Probabilities of each group's candidates.
            ratios: E[B] / B of each budget (budgets,).
            progress: Share of the search that is done, 0 to 1.
        """
        raise NotImplementedError
