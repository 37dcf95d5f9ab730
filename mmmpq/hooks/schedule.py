"""When the logits of a search step, and how far the search is."""

import math

from mmengine.runner import Runner


class Schedule:
    """Counts of a search, from the iteration that its runner is in.

    Args:
        warmup: Share of the search in which the logits rest.
        interval: Windows from one step of the logits to the next.
        joint: Whether a window is what the weights accumulate for one step of theirs,
            and not an iteration.
    """

    def __init__(self, warmup: float, interval: int, joint: bool) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(
                f'SearchHook.warmup: found {warmup!r}; accepted are shares from 0 to 1'
            )
        if interval < 1:
            raise ValueError(f'SearchHook.interval: found {interval!r}; at least 1')
        self.warmup, self.interval, self.joint = warmup, interval, joint

    def progress(self, runner: Runner) -> float:
        """Share of the search that is done, 0 to 1."""
        return runner.iter / max(1, runner.max_iters - 1)

    def epoch(self, runner: Runner) -> float:
        """Epochs that are done, in loops that count iterations as well."""
        return runner.iter / len(runner.train_loop.dataloader)

    def is_due(self, runner: Runner) -> bool:
        """Whether the logits step in this iteration, or the window it is in."""
        since = runner.iter // self._window(runner) - self._first(runner)
        return since >= 0 and since % self.interval == 0

    def moved(self, runner: Runner, ahead: int = 0) -> float:
        """Share of the search since the warm-up ended, so many steps from now."""
        window = self._window(runner)
        now = runner.iter + ahead * self.interval * window
        since = max(0, now - self._first(runner) * window)
        return since / max(1, runner.max_iters - 1)

    def steps(self, runner: Runner) -> float:
        """Steps of the logits in the whole search, to be rounded up."""
        windows = runner.max_iters / self._window(runner) - self._first(runner)
        return windows / self.interval

    def steps_per_epoch(self, runner: Runner) -> float:
        length = len(runner.train_loop.dataloader)
        return length / self._window(runner) / self.interval

    def _window(self, runner: Runner) -> int:
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        return accumulated if self.joint else 1

    def _first(self, runner: Runner) -> int:
        """The first window after the warm-up."""
        return math.ceil(self.warmup * runner.max_iters / self._window(runner))
