"""How runs end before their last step: the exceptions, and what their messages say."""

from collections.abc import Sequence

from jaxtune.config.schema import Config
from jaxtune.display.errors import UserError
from jaxtune.workdir.checkpoints import Checkpoints

NAMED = 20  # rows of a step that an error message lists
# What a signal waits for after the first step, and how a run goes on that did not wait.
FIRST = "the step under way is finished and saved"
RESUME = "run the same command again to resume from the last checkpoint"


class RunError(UserError):
    """A run that cannot continue, because it diverged or memory does not suffice."""


class Pruned(Exception):
    """A run that its `report` ended before the last step, after what it had done was saved."""

    def __init__(self, step: int, seconds: float):
        super().__init__(f"pruned after step {step:,}")
        self.step, self.seconds = step, seconds  # seconds of training


class Interrupted(Exception):
    """A signal that breaks off an evaluation."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Unrecorded(UserError):
    """Values that `report` could not record, which is no fault of the run."""


def lost(places: Sequence[str], checkpoints: Checkpoints, config: Config) -> str:
    """Returns the message of a lost run: the rows of its step, and what to do.

    Args:
      places: Places of the rows.
      checkpoints: Checkpoints of the run, all of them written.
      config: Its config.
    """
    good = checkpoints.steps[-1:]
    more = len(places) - NAMED
    rows = ", ".join(places[:NAMED]) + (f" and {more} more" if more > 0 else "")
    kept = f"{checkpoints.directory}/{good[0]}" if good else "none yet"
    return (
        f"  rows of this step: {rows}\n"
        f"  last good checkpoint: {kept}\n"
        f"  {advice(config, ' or a longer schedule.warmup')}, or check these rows"
    )


def advice(config: Config, more: str = "") -> str:
    """Returns what to try where losses are no longer finite; `more` follows the learning rate."""
    unseen = ""
    if config.objective and config.model.embedding == "host":
        unseen = (
            'try model.embedding="device", as on the host the vectors of tokens that an objective '
            "looks up beside batch.tokens are NaN; or "
        )
    return f"{unseen}try an optim.lr below {config.optim.lr:g}{more}"
