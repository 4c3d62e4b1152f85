"""Builds the parts that a command needs, each from its section of the config.

Commands make one `Assembly` of their config and pass its parts on. The layers below take these
parts, plain values or a single section, never the whole config.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from jaxtune import sharding, tasks, tree
from jaxtune.assembly import rows, weights
from jaxtune.assembly.identity import identity
from jaxtune.assembly.metrics import metrics_of
from jaxtune.assembly.objective import objective_of
from jaxtune.assembly.placer import Placer, refuse_uneven, ways
from jaxtune.assembly.rows import Rows
from jaxtune.assembly.state import Start, make_optimizer
from jaxtune.checkpoint.companions import TokenizerFiles
from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.checkpoint.formats.tensors import Tensors
from jaxtune.checkpoint.load import describe
from jaxtune.checkpoint.sources import locate, locate_headers
from jaxtune.config.fields import ConfigError
from jaxtune.config.schema import MANY, Config
from jaxtune.config.training_sections import Model as Base
from jaxtune.data.examples import RowEncoder
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import TextGenerator
from jaxtune.display.progress import Progress
from jaxtune.metrics import Metric
from jaxtune.models.paligemma import Model
from jaxtune.training.objectives import Objective
from jaxtune.training.optim import Optimizer
from jaxtune.workdir.identity import Identity

LoadBase = Callable[[Base, Path, Mesh], tuple[Model, dict]]  # such as `weights.load_base`


@dataclass(frozen=True, eq=False)
class Assembly:
    """The parts that one config describes.

    The tokenizer, encoder, sources, mesh and placer are built on first access and then kept.
    """

    config: Config
    checkpoint: Path  # checkpoint of the base: a directory, or an .npz file
    today: str  # date that is passed to chat templates
    headers: Callable[[Path], Tensors] = Safetensors.open  # opens its tensors, or only headers
    devices: tuple[Any, ...] | None = None  # of the mesh, which may be described; None: all here
    load_base: LoadBase = weights.load_base

    @classmethod
    def of(cls, config: Config, today: str) -> "Assembly":
        """Returns the assembly of a config; downloads the base if it is not on this machine."""
        return cls(config, locate(config.model.path), today)

    @classmethod
    def of_headers(
        cls, config: Config, today: str, devices: tuple[Any, ...] | None = None
    ) -> "Assembly":
        """Returns the assembly of a config that downloads no weights, and so cannot load the base.

        `devices` may be devices of a machine that is only described.
        """
        checkpoint, headers = locate_headers(config.model.path)
        return cls(config, checkpoint, today, headers, devices)

    @cached_property
    def identity(self) -> Identity:
        """Contents of the files that the result of a run depends on besides its config and rows."""
        return identity(self.config, self.checkpoint)

    # Rows

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The config's tokenizer, or else that of the base."""
        return rows.open_tokenizer(self.config.data, self.checkpoint, self.today)

    @property
    def tokenizer_files(self) -> TokenizerFiles:
        """Files of that tokenizer, with the chat template of the config, for exports."""
        place = rows.tokenizer_place(self.config.data, self.checkpoint)
        return TokenizerFiles.of(place, self.tokenizer, self.checkpoint)

    @cached_property
    def encoder(self) -> RowEncoder:
        """Encoder of rows into examples."""
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
        """Sources of the training rows and of the held-out rows, which may be None."""
        return rows.open_sources(self.config.data, self.config.eval)

    @cached_property
    def _told(self) -> set[str]:
        """Notes on the sources that the user has been told, of which two may share a file."""
        return set()

    @property
    def task(self) -> ModuleType | None:
        """The config's task, or None if it names none."""
        return tasks.find(self.config.data.task) if self.config.data.task else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics that score answers: those of the config or of its task, or exact match."""
        return metrics_of(self.config.eval.metrics, self.config.data.task)

    @property
    def higher(self) -> dict[str, bool]:
        """Whether more is better, of each metric that may choose the best checkpoint."""
        named = getattr(self.objective, "METRICS", {})
        return {**named, **{each.name: each.higher for each in self.metrics}}

    def survey(self, source: Source, progress: Progress, cache: Path | None = None) -> Rows:
        """Reads and checks all rows of a source; a `cache` file keeps the survey for reuse."""
        config = self.config
        for note in rows.notes(config.data, source):
            if note not in self._told:
                progress.say(note)
                self._told.add(note)
        depends = cache and (cache, rows.identity(config.data, self.checkpoint, self.today))
        length = config.batch.max_length
        return rows.surveyed(config.data, length, source, self.encoder, progress, depends)

    def training(self, given: Rows, share: tuple[int, int] = (0, 1)) -> Loader:
        """Returns the loader of training batches, reshuffled each epoch if the config shuffles.

        `share` is the part of the rows that this process reads, as (index, number of parts).
        """
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

    def evaluating(self, given: Rows, placer: Placer) -> Loader:
        """Returns the loader of one unshuffled pass over the rows, in batches for a placer."""
        batch = replace(self.config.batch, rows=placer.rows, accumulate=1)
        more: dict[str, Any] = dict(accumulate=1, seed=None, epochs=1, process=placer.share)
        return rows.loader(batch, given, self.config.data.workers, **more)

    def total_steps(self, loader: Loader) -> int:
        """Returns the number of steps of a run, at least 1; raises if they are more than `MANY`."""
        epochs = self.config.epochs or 1
        total = self.config.steps or max(1, round(epochs * loader.steps_per_epoch))
        if total > MANY:
            raise ConfigError(
                f"epochs: {epochs:g} epochs of {loader.steps_per_epoch:,} steps are {total:,} "
                f"steps, and a run may have {MANY:,}; lower epochs, or set steps"
            )
        return total

    # Devices

    @cached_property
    def mesh(self) -> Mesh:
        """Mesh of the devices, with the axes of the config."""
        return sharding.make_mesh(vars(self.config.mesh), self.devices)

    @cached_property
    def placer(self) -> Placer:
        """Placer of micro-batches; raises ValueError if the mesh does not divide their rows."""
        batch = self.config.batch
        refuse_uneven(batch.rows, batch.accumulate, self.mesh)
        return Placer(self.mesh, batch.rows // batch.accumulate, batch.packing)

    @cached_property
    def eval_placer(self) -> Placer:
        """Placer of batches to evaluate, whose rows are rounded up to what the mesh divides.

        The held-out loss does not depend on their number; a run's training does.
        """
        batch, among = self.config.batch, ways(self.mesh)
        parts = -(-(batch.rows // batch.accumulate) // among)
        return Placer(self.mesh, parts * among, batch.packing)

    # Weights

    def base(self, checkpoint: Path | None = None, **held: Any) -> tuple[Model, dict]:
        """Loads the model and variables of the base, or of another checkpoint.

        `held` overrides fields of the config's `model` section, such as `quant`.
        """
        given = replace(self.config.model, **held)
        return self.load_base(given, checkpoint or self.checkpoint, self.mesh)

    def model(self) -> tuple[Model, dict]:
        """Loads the base, with the initial adapters of a run if the config trains adapters."""
        config = self.config
        return weights.with_adapters(config.trainable, *self.base(), self.mesh, config.seed)

    def outline(self) -> tuple[Model, dict]:
        """Returns what `model` returns, with shapes in place of arrays; no weights are read."""
        config = self.config
        checkpoint = describe(self.checkpoint, self.headers)
        base = weights.outline_base(config.model, checkpoint, self.mesh)
        return weights.outline_adapters(config.trainable, *base, self.mesh)

    def generator(self, model: Model, variables: Mapping) -> TextGenerator:
        """Returns a generator of answers with these weights and the settings of `generate`."""
        config = self.config
        return TextGenerator(model, variables, self.tokenizer, config.generate, config.seed)

    def optimizer(self, total: int) -> Optimizer:
        """Returns the optimiser of a run of `total` steps."""
        config = self.config
        return make_optimizer(config.optim, config.schedule, config.trainable.lora_plus, total)

    @cached_property
    def objective(self) -> Objective:
        """What training minimises: that of the config, or else cross-entropy."""
        return objective_of(self.config.objective)

    def start(self, variables: dict, optimizer: Optimizer) -> Start:
        """Splits variables into trained and frozen ones, for the state at step 0.

        Raises RuleError if a rule of `optim.rates` or `optim.decays` applies to none of the former.
        """
        config = self.config
        start = Start(config.trainable, variables, optimizer, self.mesh, config.seed)
        if config.model.embedding == "host":
            start.frozen = weights.with_embedding_on_host(start.frozen, start.mesh)
        for name in ("rates", "decays"):
            rules = getattr(config.optim, name)
            tree.refuse_idle(f"optim.{name}", rules, tree.flatten(start.selected))
        return start
