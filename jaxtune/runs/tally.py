"""Counts, losses and speed of a run so far, and the rules by which a run is lost."""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

# A run is lost once its loss exceeds EXPLODED × the first loss and the loss of guessing, or stays
# above HIGH × the first loss and that of guessing for HIGH_STEPS steps, or its gradient norm is 0
# for STILL_STEPS steps, or its loss is exactly 0.
EXPLODED, HIGH, HIGH_STEPS, STILL_STEPS = 3, 1.5, 20, 3


@dataclass
class Tally:
    """Counts and losses of a run so far; all of them are stored in its checkpoints."""

    loss: float = 0.0  # sum of loss × weight over the steps since the last log line
    # Sums of the objective's metrics × weight over the same steps.
    metrics: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0  # sum of weights over the same steps
    # Tokens, scored tokens, examples and seconds are totals since the run began.
    tokens: int = 0
    scored: int = 0
    examples: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    before: float | None = None  # held-out loss before the first step
    best_loss: float | None = None  # held-out loss of the evaluation with the best score
    best_score: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best one
    owed: bool = False  # whether the evaluation after the last step was left out, on a signal
    high: int = 0  # successive steps with a high loss
    still: int = 0  # successive steps with a gradient norm of 0

    def add(self, loss: float, weight: float, metrics: Mapping[str, float]) -> None:
        """Adds a step's loss and metrics, which are means of this weight."""
        self.loss += loss * weight
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value * weight
        self.weight += weight

    def means(self) -> dict[str, float]:
        """Returns the means of the loss and the metrics since the last call."""
        sums = {"loss": self.loss, **self.metrics}
        found = {name: value / self.weight for name, value in sums.items()}
        self.loss, self.metrics, self.weight = 0.0, {}, 0.0
        return found

    def lost(self, loss: float, norm: float, guess: float | None) -> str:
        """Counts a step, and returns why the run is lost, or "" if it is not.

        Args:
          loss: Loss of the step; that of the first step is kept.
          norm: Its gradient norm.
          guess: Loss of guessing, where all tokens are equally likely; None for an objective of
            which it is not known, whose loss and gradient norm must only be finite.
        """
        if self.first_loss is None:
            self.first_loss = loss
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "training diverged"
        if guess is None:
            return ""
        high = max(HIGH * self.first_loss, guess)
        self.high = self.high + 1 if loss > high else 0
        self.still = self.still + 1 if norm == 0 else 0
        if loss > max(EXPLODED * self.first_loss, guess):
            return "training diverged"
        if self.high >= HIGH_STEPS:
            return f"the loss has stayed above {high:.4g} for {HIGH_STEPS} steps"
        if self.still >= STILL_STEPS:
            return f"the gradient has been zero for {STILL_STEPS} steps, so nothing trains any more"
        if loss == 0:
            return "the loss is exactly 0, so nothing is left to learn from such rows"
        return ""


class Speed:
    """Throughput of the last 20 steps."""

    def __init__(self):
        self._steps: deque[tuple[int, float]] = deque(maxlen=20)
        self._clock = time.monotonic()

    def note(self, tokens: int) -> float:
        """Records a finished step; returns the seconds since the previous step or `start`."""
        seconds = -self._clock + self.start()
        self._steps.append((tokens, seconds))
        return seconds

    def start(self) -> float:
        """Restarts the clock, so that the time until now counts for no step; returns the time."""
        self._clock = time.monotonic()
        return self._clock

    @property
    def seconds(self) -> float:
        """Median seconds per step over the last 20 steps, which hides those that compiled."""
        return statistics.median([seconds for _, seconds in self._steps] or [0.0])

    @property
    def tokens(self) -> float:
        """Mean tokens per second, over the last 20 steps."""
        total = sum(tokens for tokens, _ in self._steps)
        return total / max(1e-9, sum(seconds for _, seconds in self._steps))
