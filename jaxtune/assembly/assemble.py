"""A config opened in one place: each part that a command needs, made from the section that says it.

Commands make one `Assembly` of their config and hand its parts on; what is below them takes these
parts, numbers or one section, and never the whole config.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from jaxtune import sharding, tasks
from jaxtune.assembly import rows, weights
from jaxtune.assembly.placer import Placer
from jaxtune.assembly.rows import Rows
from jaxtune.assembly.state import Start, make_optimizer
from jaxtune.checkpoint.hub import locate
from jaxtune.config.schema import Config
from jaxtune.data.examples import RowEncoder
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import TextGenerator
from jaxtune.display.progress import Progress
from jaxtune.metrics import Metric
from jaxtune.metrics.exact import EXACT
from jaxtune.models.paligemma import Model
from jaxtune.training.optim import Optimizer


@dataclass(frozen=True, eq=False)
class Assembly:
    """What one config describes; each part is made when it is first asked for, and only once."""

    config: Config
    checkpoint: Path  # of the base: a directory, or an .npz file
    today: str  # the date that chat templates are told

    @classmethod
    def of(cls, config: Config, today: str) -> "Assembly":
        """The assembly of a config whose base is found on this machine, or downloaded."""
        return cls(config, locate(config.model.path), today)

    # Rows

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The config's tokenizer, or else the checkpoint's own."""
        return rows.open_tokenizer(self.config.data, self.checkpoint, self.today)

    @cached_property
    def encoder(self) -> RowEncoder:
        """What makes examples of rows."""
        config = self.config
        return rows.row_encoder(
            config.data,
            config.batch.max_length,
            self.tokenizer,
            rows.pictures_of(self.checkpoint),
            config.model.path,
        )

    @cached_property
    def sources(self) -> tuple[Source, Source | None]:
        """The rows to train on, and the held-out ones, if there are any."""
        return rows.open_sources(self.config.data, self.config.eval)

    @property
    def task(self) -> ModuleType | None:
        """The config's task, if it names one."""
        return tasks.find(self.config.data.task) if self.config.data.task else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What answers are scored by: what the task says, or whether they are the reference."""
        return self.task.METRICS if self.task else (EXACT,)

    def survey(self, source: Source, progress: Progress, cache: Path | None = None) -> Rows:
        """Read all rows of a source once; what is found stays in the `cache` file, if one is."""
        config = self.config
        depends = cache and (cache, rows.identity(config.data, self.checkpoint, self.today))
        length = config.batch.max_length
        return rows.surveyed(config.data, length, source, self.encoder, progress, depends)

    def training(self, given: Rows, share: tuple[int, int] = (0, 1)) -> Loader:
        """The steps of a run, shuffled anew each epoch; `share` is this process's part of rows."""
        config = self.config
        return rows.loader(
            config.batch,
            given,
            config.data.workers,
            accumulate=config.batch.accumulate,
            seed=config.seed if config.data.shuffle else None,
            augment=config.data.augment,
            augment_seed=config.seed,
            epochs=None if config.steps else math.ceil(config.epochs or 1),
            process=share,
        )

    def evaluating(self, given: Rows, share: tuple[int, int] = (0, 1)) -> Loader:
        """The batches of an evaluation, in the rows' order."""
        more: dict[str, Any] = dict(accumulate=1, seed=None, epochs=1, process=share)
        return rows.loader(self.config.batch, given, self.config.data.workers, **more)

    def total_steps(self, loader: Loader) -> int:
        """The updates that a run makes."""
        config = self.config
        return config.steps or max(1, round((config.epochs or 1) * loader.steps_per_epoch))

    # Devices

    @cached_property
    def mesh(self) -> Mesh:
        """The devices, along the config's axes."""
        return sharding.make_mesh(vars(self.config.mesh))

    @cached_property
    def placer(self) -> Placer:
        """What puts batches on the devices."""
        batch = self.config.batch
        return Placer(self.mesh, batch.rows // batch.accumulate, batch.packing)

    # Weights

    def base(self, checkpoint: Path | None = None, **held: Any) -> tuple[Model, dict]:
        """The base's model and variables, or another checkpoint's.

        `held` are fields of the section `model` that are to be other than the config's.
        """
        given = replace(self.config.model, **held)
        return weights.load_base(given, checkpoint or self.checkpoint, self.mesh)

    def model(self) -> tuple[Model, dict]:
        """The base with the adapters that a run begins with, where the config wants any."""
        config = self.config
        return weights.with_adapters(config.trainable, *self.base(), self.mesh, config.seed)

    def generator(self, model: Model, variables: Mapping) -> TextGenerator:
        """What answers prompts with these weights, as the section `generate` says."""
        config = self.config
        return TextGenerator(model, variables, self.tokenizer, config.generate, config.seed)

    def optimizer(self, total: int) -> Optimizer:
        """The optimiser of a run of `total` steps."""
        config = self.config
        return make_optimizer(config.optim, config.schedule, config.trainable.lora_plus, total)

    def start(self, variables: dict, optimizer: Optimizer) -> Start:
        """What trains of these variables and what is frozen, before the first step."""
        config = self.config
        return Start(config.trainable, variables, optimizer, self.mesh, config.seed)
