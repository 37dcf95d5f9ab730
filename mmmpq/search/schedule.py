"""When the logits of a search step, and how far the search is."""

import math


class Schedule:
    """Counts of a search, from the iteration that it is in.

    Args:
        iterations: Of the whole search.
        warmup: Share of the search in which the logits rest.
        interval: Windows from one step of the logits to the next.
        window: Iterations that make one: where the logits step with the weights, as
            many as these accumulate, else 1.
    """

    def __init__(
        self, iterations: int, warmup: float = 0.1, interval: int = 1, window: int = 1
    ) -> None:
        self.iterations, self.interval, self.window = iterations, interval, window
        self._first = math.ceil(warmup * iterations / window)  # after the warm-up

    def progress(self, iteration: int) -> float:
        """Share of the search that is done, 0 to 1."""
        return iteration / max(1, self.iterations - 1)

    def is_due(self, iteration: int) -> bool:
        """Whether the logits step in this iteration, or the window it is in."""
        since = iteration // self.window - self._first
        return since >= 0 and since % self.interval == 0

    def moved(self, iteration: int, ahead: int = 0) -> float:
        """Share of the search since the warm-up ended, so many steps from now."""
        now = iteration + ahead * self.interval * self.window
        return self.progress(max(0, now - self._first * self.window))

    @property
    def steps(self) -> float:
        """Steps of the logits in the whole search, to be rounded up."""
        return (self.iterations / self.window - self._first) / self.interval

    def steps_in(self, iterations: int) -> float:
        """Steps of the logits in so many iterations after the warm-up."""
        return iterations / self.window / self.interval
