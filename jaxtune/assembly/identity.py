"""What the result of a run depends on besides its config and rows: files that may be replaced."""

from pathlib import Path

from jaxtune import tasks
from jaxtune.assembly import rows
from jaxtune.assembly.metrics import metric_files
from jaxtune.assembly.objective import objective_files
from jaxtune.checkpoint import content
from jaxtune.checkpoint.peft.adapter_config import CONFIG_NAME, WEIGHTS_NAME
from jaxtune.checkpoint.sources import locate
from jaxtune.config.schema import Config
from jaxtune.workdir.identity import Identity


def identity(config: Config, checkpoint: Path) -> Identity:
    """Returns the contents of what a config names: base, tokenizer, adapter, task and the like.

    `checkpoint` is the local path of the base.
    """
    data, adapter = config.data, config.trainable.adapter
    return {
        "base": content.of_checkpoint(checkpoint),
        "tokenizer": content.of_files(rows.tokenizer_files(data, checkpoint)),
        "adapter": content.of_files(_adapter_files(adapter) if adapter else []),
        "task": content.of_files([Path(tasks.find(data.task).__file__)] if data.task else []),
        "objective": content.of_files(objective_files(config.objective)),
        "metrics": content.of_files(metric_files(config.eval.metrics)),
    }


def _adapter_files(source: str) -> list[Path]:
    """Returns the files of an adapter that decide what it computes."""
    place = locate(source)
    return [place / name for name in (CONFIG_NAME, WEIGHTS_NAME) if (place / name).is_file()]
