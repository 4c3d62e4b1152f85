"""Order of a run's items: reshuffled each epoch, prepared ahead by threads, resumed in O(1).

Grain computes the place of an item from its index alone. A position in the order is therefore one
integer, and resuming from it replays nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from jaxtune.data.errors import DataError

T = TypeVar("T")
UNSHUFFLED = -1


@dataclass(frozen=True)
class Turn:
    """Items of one step."""

    step: int  # from 0, over all epochs
    epoch: int
    items: list[int]


class Order(Generic[T]):
    """Iterator over steps of `each` items, each item once per epoch.

    The last step of an epoch may have fewer items.

    Args:
      items: Number of items.
      each: Items per step.
      make: Turns the items of a step into the value that the iterator yields.
      seed: Seed of the shuffling; None keeps the items in order.
      epochs: Number of epochs; None never ends.
      workers: Threads that call `make`; 0 calls it in the caller's thread. The order is the same.
      ahead: Maximum number of steps prepared in advance.
    """

    def __init__(
        self,
        items: int,
        each: int,
        make: Callable[[Turn], T],
        *,
        seed: int | None = None,
        epochs: int | None = 1,
        workers: int = 2,
        ahead: int = 4,
    ):
        from grain import MapDataset, ReadOptions

        self.each, self.steps_per_epoch = each, -(-items // each)
        self.steps = None if epochs is None else epochs * self.steps_per_epoch
        shuffled = UNSHUFFLED if seed is None else seed
        self._identity = {"items": items, "each": each, "seed": shuffled}
        numbers = MapDataset.range(items)
        if seed is not None:
            # Grain shuffles epoch n with seed + n, so neighbouring seeds would share permutations.
            mixed = np.random.SeedSequence(seed).generate_state(1)[0]
            numbers = numbers.shuffle(seed=int(mixed))
        self._turns = steps = numbers.batch(each, batch_fn=list).repeat(epochs)

        def made(step: int, found: list[int]) -> T:
            return make(Turn(step, step // self.steps_per_epoch, [int(item) for item in found]))

        options = ReadOptions(num_threads=workers, prefetch_buffer_size=ahead if workers else 0)
        self._steps = iter(steps.map_with_index(made).to_iter_dataset(options))

    def __iter__(self) -> "Order[T]":
        return self

    def __next__(self) -> T:
        return next(self._steps)

    def items(self, step: int) -> list[int]:
        """Returns the items of a step, which is not made."""
        return [int(item) for item in self._turns[step]]

    def state(self) -> dict[str, int]:
        """Returns the position and what identifies the order, as JSON-compatible values."""
        return {"step": self._steps.get_state()["next_index"], **self._identity}

    def restore(self, state: dict[str, int]) -> None:
        """Continues from a state; raises DataError for one of another order."""
        changed = [
            f"{name} was {state.get(name)} and is now {now}"
            for name, now in self._identity.items()
            if state.get(name) != now
        ]
        if changed:
            raise DataError(
                f"cannot resume, because the order of the data changed: {'; '.join(changed)}"
            )
        if self.steps is not None and not 0 <= state["step"] <= self.steps:
            raise DataError(
                f"cannot resume after step {state['step']:,}: there are only {self.steps:,} steps"
            )
        self._steps.set_state({"next_index": int(state["step"])})

    def close(self) -> None:
        """Stops the threads that prepare steps; no step can be taken afterwards."""
        self._steps.close()
