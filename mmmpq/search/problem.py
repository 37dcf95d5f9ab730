"""What can be chosen under budgets, and the choice."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmmpq.costs import Budget
from mmmpq.costs.left_float import float_note
from mmmpq.layers import on_host, quantized_part
from mmmpq.policy import Policy
from mmmpq.randomness import isolated_randomness
from mmmpq.search.at_choice import at_choice
from mmmpq.search.choose import best_sample, spend_rest
from mmmpq.search.discretise import most_probable
from mmmpq.search.meta import describe
from mmmpq.search.sample import sample_choices
from mmmpq.search.settings import budgets_of
from mmmpq.search.space import SearchSpace
from mmmpq.search.tables import Table, cost_tables
from mmmpq.version import __version__

LOG = logging.getLogger('mmmpq.search')
SAMPLING = 15_485_863  # seeds the samples, with the problem's seed


class Problem:
    """The groups of a supernet, what their candidates cost, and budgets to keep.

    Args:
        model: A supernet.
        budgets: See :class:`mmmpq.search.Search`, as for the others.
        input_shape: (C, H, W) of the reference input, where a budget names none.
        seed: Of sampled policies.
        space: The search space of ``model``, where it is known already.
        log: Takes what there is to say.

    Attributes:
        tables: What each choice costs under every budget.
        counted: The same, and those of what penalties count; the first is what policies
            report.

    Raises:
        ValueError: The budgets cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        budgets: Sequence[str | Mapping | Budget] = (),
        input_shape: Sequence[int] | None = None,
        seed: int = 0,
        space: SearchSpace | None = None,
        log: Callable[[str], None] = LOG.info,
    ) -> None:
        self.model, self.seed, self.log = model, seed, log
        self.space = SearchSpace(model) if space is None else space
        self.tables = cost_tables(model, self.space, budgets_of(budgets, input_shape))
        for table in self.tables:
            table.check()
        self.most_probable()  # all of them at once can be met
        for note in {float_note(table.float_share) for table in self.tables} - {''}:
            log(note)
        self.counted: list[Table] = [*self.tables]

    def most_probable(self, probs: Sequence[Tensor] | None = None) -> list[int]:
        """A candidate for each group: the most probable choice inside all budgets."""
        probs = None if probs is None else on_host(probs)
        return most_probable(self.space, self.tables, probs)

    def choose(
        self,
        loss_of: Callable[[], float] | None = None,
        samples: int = 0,
        spend: bool = True,
        probs: Sequence[Tensor] | None = None,
    ) -> list[int]:
        """A candidate for each group, inside all budgets.

        Args:
            loss_of: Computes the loss of the model, which is then the net of a choice,
                the same for every call; None: the most probable choice it is.
            samples: Choices drawn from the probabilities to try as well.
            spend: Whether to spend what is left of the budgets where it helps most.
            probs: Of each group's candidates; default: those of the logits.
        """
        choice = self.most_probable(probs)
        if loss_of is None:
            return choice

        def measured(tried: Sequence[int]) -> float:
            net = at_choice(self.model, self.space, tried)
            with net, torch.no_grad(), isolated_randomness(0):
                return float(loss_of())

        if samples:
            generator = torch.Generator().manual_seed(self.seed + SAMPLING)
            drawn = sample_choices(self.space, self.tables, samples, generator)
            tried = [choice, *(c for c in drawn if c != choice)]
            table = self.counted[0]
            choice = best_sample(self.space, tried, measured, table, self.log)
        if spend and self.tables:
            choice = spend_rest(self.space, choice, self.tables, measured, self.log)
        return choice

    def policy(self, choice: Sequence[int] | None = None) -> Policy:
        """The policy of a choice, with what it was found for; default: the most
        probable one."""
        choice = self.most_probable() if choice is None else choice
        return self.described(self.space.policy(choice))

    def described(self, policy: Policy) -> Policy:
        """``policy``, with what it was found for."""
        policy.meta.update(
            model=type(quantized_part(self.model)).__name__,
            **describe(policy, self.space, self.tables, self.counted[0]),
            seed=self.seed,
            mmmpq=__version__,
        )
        return policy
