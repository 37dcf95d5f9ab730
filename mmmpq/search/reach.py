"""Whether the task loss reaches all that is searched."""

from collections.abc import Callable

from torch import Tensor

from mmmpq.quantizers.base import indices
from mmmpq.search.space import SearchSpace
from mmmpq.transfer import Fetch

STEPS = 5


class Reach:
    """Says which groups have had no gradient of the task loss in the first steps.

    The penalties alone would then choose for them, without a word.

    Args:
        space: The groups.
        log: Takes what there is to say.
    """

    def __init__(self, space: SearchSpace, log: Callable[[str], None]) -> None:
        self.space, self.log = space, log
        self._steps = 0
        self._reached: Tensor | Fetch | None = None

    def note(self, task: Tensor | None) -> None:
        """Takes the gradient of a step (L,); None is 0."""
        self._steps += 1
        if self._steps <= STEPS and task is not None:
            sizes = [p.numel() for p in self.space.logits]
            groups = [g for g, size in enumerate(sizes) for _ in range(size)]
            groups = indices(groups, task.device)
            reached = task.new_zeros(len(sizes)).index_add(
                0, groups, task.ne(0).to(task)
            )
            if self._reached is not None:
                reached += self._reached
            self._reached = reached
        if self._steps == STEPS and self._reached is not None:
            self._reached = Fetch(self._reached)  # the host does not wait for it
        if self._steps == STEPS + 1:
            self._say()

    def _say(self) -> None:
        count = len(self.space.groups)
        reached = [0.0] * count
        if self._reached is not None:
            reached = self._reached.result().tolist()
        pairs = zip(self.space.groups, reached, strict=True)
        missed = [group.name for group, is_reached in pairs if not is_reached]
        if missed:
            self.log(
                f'Search: no gradient of the task loss has reached {len(missed)} of '
                f'{count} groups in {STEPS} steps, and nothing but the penalties '
                f'chooses for them: {", ".join(missed)}. Their layers take no part in '
                'the loss, or what is between does not pass a gradient on'
            )
