"""What a config describes, made: rows, prompts and batches; model, adapters and state."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxtune
from jaxtune import quant, sharding, tasks, tree
from jaxtune.adapters import lora
from jaxtune.checkpoint.hub import COMPANIONS
from jaxtune.checkpoint.load import load
from jaxtune.checkpoint.load import read as described
from jaxtune.checkpoint.peft.adapter import load_adapter
from jaxtune.config.schema import SCHEMA, Config, Trainable, counted
from jaxtune.data.batches import Batch
from jaxtune.data.errors import DataError
from jaxtune.data.examples import Chat, Form, Prompt, Template, Written
from jaxtune.data.images import Pictures
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source, first, open_source, set_apart
from jaxtune.data.survey import Survey, survey
from jaxtune.data.survey_cache import kept
from jaxtune.data.textfiles import stamp
from jaxtune.data.tokenizer import Tokenizer, beside
from jaxtune.display.progress import Progress
from jaxtune.models.paligemma import Model
from jaxtune.training import optim
from jaxtune.training.step import TrainState, split

RULES: dict[str, tree.Rules] = {
    "lora": lora.TRAINABLE,
    "attention": ((r"params/(llm/)?layers/attn/.*", True), (r".*", False)),
    "full": ((r"params/.*", True), (r".*", False)),
}


# Rows


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that were read once, and the prompt that makes examples of them."""

    source: Source
    prompt: Prompt
    survey: Survey


def tokenizer(config: Config, directory: Path, today: str) -> Tokenizer:
    """The config's tokenizer, or that of the checkpoint in a directory or beside an .npz file."""
    place = config.data.tokenizer or (beside(directory) if directory.is_file() else directory)
    return Tokenizer.open(place, today=today)


def pictures(directory: Path) -> Pictures | None:
    """What a checkpoint wants of pictures, if it sees any."""
    wants = described(directory)[2].pictures
    return wants and Pictures(wants.side, wants.tokens, wants.token)


def prompt(config: Config, tokenizer: Tokenizer, pictures: Pictures | None = None) -> Prompt:
    """How a row becomes tokens; `pictures` is what the model wants of these, if it sees any."""
    data = config.data
    if data.augment and pictures is None:
        raise ValueError(f"data.augment changes pictures, and {config.model.path} sees none")
    return Prompt(
        tokenizer,
        _form(config),
        config.batch.max_length,
        too_long=data.too_long,
        full_prefix=pictures is not None,
        pictures=pictures if data.image else None,
        image=data.image,
        image_root=data.image_root,
    )


def sources(config: Config) -> tuple[Source, Source | None]:
    """The rows to train on, and those to evaluate on, if there are any."""
    data, held = config.data, config.eval
    train = _opened(config, data.source, data.split, data.rows)
    if held.source or held.split:
        split = held.split or data.split
        return train, _opened(config, held.source or data.source, split, held.rows)
    if not held.holdout:
        return train, None
    train, apart = set_apart(train, counted(held.holdout, len(train)))
    return train, first(apart, held.rows)


def read(
    config: Config,
    source: Source,
    prompt: Prompt,
    progress: Progress,
    keep: tuple[Path, list] | None = None,
) -> Rows:
    """Read all rows once: what is wrong with any comes up before the run begins.

    `keep` is where what was found is kept for the next time, and what it depends on besides.
    """
    whole = len(source)

    def surveyed() -> Survey:
        return survey(
            source,
            prompt,
            malformed=config.data.bad_rows,
            workers=max(1, config.data.workers),
            progress=lambda count: progress.draw(f"reading rows: {count:,} of {whole:,}"),
        )

    if keep is None:
        return Rows(source, prompt, surveyed())
    file, more = keep
    pictures = prompt.pictures and vars(prompt.pictures)
    settings = [vars(config.data), config.batch.max_length, jaxtune.__version__, pictures, more]
    return Rows(source, prompt, kept(file, [source.identity, settings], surveyed))


def identity(config: Config, directory: Path, today: str) -> list:
    """What the making of examples depends on, beside rows and config."""
    place = Path(config.data.tokenizer).expanduser() if config.data.tokenizer else directory
    task = [Path(tasks.find(config.data.task).__file__)] if config.data.task else []
    beside = (file for pattern in COMPANIONS for file in sorted(place.glob(pattern)))
    files = [place] if place.is_file() else filter(Path.is_file, beside)
    return [today, *map(stamp, [*files, *task])]


def training(config: Config, rows: Rows, share: tuple[int, int] = (0, 1)) -> Loader:
    """The steps of a run, shuffled anew each epoch."""
    epochs = None if config.steps else math.ceil(config.epochs or 1)
    return _loader(
        config,
        rows,
        accumulate=config.batch.accumulate,
        seed=config.seed if config.data.shuffle else None,
        augment=config.data.augment,
        augment_seed=config.seed,
        epochs=epochs,
        process=share,
    )


def evaluating(config: Config, rows: Rows, share: tuple[int, int] = (0, 1)) -> Loader:
    """The batches of an evaluation, in the rows' order."""
    return _loader(config, rows, accumulate=1, seed=None, epochs=1, process=share)


def total_steps(config: Config, loader: Loader) -> int:
    """The updates a run makes."""
    return config.steps or max(1, round((config.epochs or 1) * loader.steps_per_epoch))


def _loader(config: Config, rows: Rows, **more: Any) -> Loader:
    batch = config.batch
    return Loader(
        rows.source,
        rows.prompt,
        rows.survey,
        batch=batch.rows // batch.accumulate,
        packing=batch.packing,
        buckets=batch.buckets,
        weighting=batch.weighting,
        workers=config.data.workers,
        **more,
    )


def _opened(config: Config, source: Any, split: str, limit: int | None) -> Source:
    data = config.data
    found = open_source(
        source, split=split, subset=data.subset or None, revision=data.revision or None
    )
    if not len(found):
        raise DataError(f"{source}: holds no rows")
    return first(found, limit)


def _form(config: Config) -> Form:
    data = config.data
    end = data.end or None
    if data.messages:
        return Chat(data.messages, turns=data.turns)
    if data.task:
        task = tasks.find(data.task)
        renamed = dict(data.columns)
        for name in renamed.keys() - task.COLUMNS.keys():
            raise ValueError(
                f"data.columns names {name!r}, which the task {data.task!r} does not read: "
                f"expected some of {', '.join(task.COLUMNS)}"
            )
        return Written(task.prefix, task.suffix, end, data.columns)
    return Template(data.prefix, data.suffix, end)


# Devices


def mesh(config: Config) -> Mesh:
    """The devices, along the config's axes."""
    return sharding.make_mesh(vars(config.mesh))


@dataclass(frozen=True)
class Placer:
    """Puts this process's share of a batch on the devices of a mesh."""

    mesh: Mesh
    rows: int  # of a micro-batch, all processes together
    packing: bool

    @cached_property
    def sharding(self) -> NamedSharding:
        """That of a micro-batch's rows; on every device whole where they cannot be divided."""
        return NamedSharding(self.mesh, sharding.fitted(sharding.ROWS, (self.rows,), self.mesh))

    @property
    def divided(self) -> bool:
        """Whether devices share a micro-batch's rows, as many as should."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] == 1 or any(self.sharding.spec)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of the rows this process's devices take, and of how many parts."""
        places = self.sharding.addressable_devices_indices_map((self.rows,)).values()
        starts, stops = zip(*(where[0].indices(self.rows)[:2] for where in places), strict=True)
        size = max(stops) - min(starts)
        return min(starts) // size, self.rows // size

    def __call__(self, batch: Batch, *, parts: bool) -> Batch:
        """The batch on the devices: [A, B, …], or without `parts` [B, …]."""
        # Counted and told apart by the step itself, positions leave more kernels a choice.
        batch = batch.replace(positions=None, segments=batch.segments if self.packing else None)
        if not parts:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        spec = PartitionSpec(None, *self.sharding.spec) if parts else self.sharding.spec
        where = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, leaf), batch)


def placer(config: Config, mesh: Mesh) -> Placer:
    """What puts a config's batches on the devices."""
    batch = config.batch
    return Placer(mesh, batch.rows // batch.accumulate, batch.packing)


# Weights


def base(config: Config, directory: Path, mesh: Mesh) -> tuple[Model, dict]:
    """A checkpoint's model and its variables, held and computed as the config says."""
    given = config.model
    decoder, variables = load(
        directory,
        given.dtype,
        given.quant,
        mesh=mesh,
        attention=given.attention,
        compute=given.compute,
    )
    return decoder.clone(remat=given.remat), variables


def model(config: Config, directory: Path, mesh: Mesh) -> tuple[Model, dict]:
    """The checkpoint's model and its variables, with new adapters where the config wants them."""
    decoder, variables = base(config, directory, mesh)
    if config.trainable.kind == "lora" and config.trainable.adapter:
        variables |= _continued(config, decoder, variables, mesh)
    elif config.trainable.kind == "lora":
        key = jax.random.key(config.seed)
        variables |= _adapted(config.trainable, mesh, variables["params"], key)
    return decoder, variables


def trainable(config: Config) -> tree.Rules:
    """Which leaves are tuned."""
    kind = config.trainable.kind
    return config.trainable.rules if kind == "rules" else RULES[kind]


def optimizer(config: Config, total: int) -> optim.Optimizer:
    """The config's optimiser, for a run of so many steps."""
    given, schedule = config.optim, config.schedule
    plus = config.trainable.lora_plus
    return optim.optimizer(
        given.name,
        schedule.name,
        rates=(*given.rates, *([(r"lora/.*/b", plus)] if plus != 1 else [])),
        decays=(*given.decays, *optim.DECAYS),
        lr=given.lr,
        weight_decay=given.weight_decay,
        b1=given.b1,
        b2=given.b2,
        epsilon=given.epsilon,
        momentum=given.momentum,
        clip_norm=math.inf if given.clip_norm is None else given.clip_norm,
        warmup_steps=counted(schedule.warmup, total),
        decay_steps=counted(schedule.decay, total),
        total_steps=total,
    )


class Start:
    """Where a run begins: what moves and what is frozen, on a mesh."""

    def __init__(self, config: Config, variables: dict, optimizer: optim.Optimizer, mesh: Mesh):
        rules = trainable(config)
        unused = "error" if config.trainable.kind == "rules" else "allow"
        self.mesh = mesh
        base = lora.embedding(quant.by_path(variables["params"]))
        self.dtype = str(base.dtype)  # of the base as it is held
        self._given, self.frozen = split(variables, rules, unused)
        self._static = (tuple(map(tuple, rules)), optimizer, mesh)
        self._numbers = (dict(optimizer.hyper), jax.random.key(config.seed))
        self.selected = _described(self._given)
        rest = jax.tree.map(lambda leaf: None, self._given)
        shapes = jax.eval_shape(
            partial(_created, *self._static), self._given, rest, self.frozen, *self._numbers
        )
        self.shapes: TrainState = _described(shapes, sharding.of_state(shapes, mesh))

    def release(self) -> None:
        """Let go of the frozen leaves; their shapes stay."""
        self.frozen = _described(self.frozen)

    def state(self) -> TrainState:
        """The state at step 0, once: it takes the memory of the leaves that train."""
        given, self._given = self._given, None
        reused = jax.tree.map(lambda leaf: leaf.dtype == np.float32, given)
        parts = tree.partition(given, reused)
        moving = _created(*self._static, *parts, self.frozen, *self._numbers)
        return moving.replace(frozen=self.frozen)

    def restored(self, moving: TrainState) -> TrainState:
        """The state of a checkpoint instead, under the numbers that the config says now."""
        self._given = None
        hyper = {
            name: jax.device_put(np.float32(self._numbers[0][name]), leaf.sharding)
            for name, leaf in self.shapes.hyper.items()
        }
        return moving.replace(frozen=self.frozen, hyper=hyper)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _created(
    rules: tree.Rules,
    optimizer: optim.Optimizer,
    mesh: Mesh,
    reused: dict,  # the leaves that train and whose memory the state takes
    rest: dict,  # the others of them
    frozen: dict,
    hyper: dict,
    rng: jax.Array,
) -> TrainState:
    """What moves of a state at step 0, laid over a mesh."""
    state = TrainState.create(
        tree.combine(reused, rest, frozen),
        trainable=rules,
        optimizer=optimizer,
        hyper=hyper,
        rng=rng,
    ).replace(frozen=None)
    return jax.lax.with_sharding_constraint(state, sharding.of_state(state, mesh))


def _described(leaves: Any, where: Any = None) -> Any:
    """Shapes, dtypes and shardings in place of arrays."""
    where = jax.tree.map(lambda leaf: leaf.sharding, leaves) if where is None else where
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        leaves,
        where,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _adapted(given: Trainable, mesh: Mesh, params: dict, key: jax.Array) -> dict:
    """New adapters, made where they will lie; and the weights, where their start changes these."""
    made = lora.add_lora(
        {"params": params},
        given.rank,
        given.alpha,
        given.targets,
        key=key,
        dropout=given.dropout,
        variant=given.variant,
        init=given.init,
    )
    if given.init == "default":
        made = {"lora": made["lora"]}
    return jax.lax.with_sharding_constraint(made, sharding.of_state(made, mesh))


def _continued(config: Config, model: Model, variables: dict, mesh: Mesh) -> dict:
    """Adapters that are there already, made where they will lie."""
    given = config.trainable
    made = lora.adapters(load_adapter(model, variables, given.adapter))
    if problems := list(_disagreeing(config, variables, made)):
        raise ValueError(
            "\n  ".join(
                [f"the adapter {given.adapter} is not what the config asks for:", *problems]
            )
            + "\nSet these as the adapter has them, or leave them out"
        )
    if SCHEMA.given(config, "trainable.dropout"):
        made = {
            path: each.replace(dropout=jax.numpy.full_like(each.dropout, given.dropout))
            for path, each in made.items()
        }
    made = {"lora": tree.unflatten(made)}
    return jax.device_put(made, sharding.of_state(made, mesh))


def _disagreeing(config: Config, variables: dict, made: dict[str, lora.Lora]) -> Iterator[str]:
    """What a config sets otherwise than an adapter has it, both sides named."""
    given, key = config.trainable, jax.random.key(0)
    new = partial(lora.add_lora, variables, targets=given.targets, key=key)
    power = 0.5 if given.variant == "rslora" else 1
    theirs = {
        "targets": sorted(made),
        "rank": sorted({each.a.shape[-1] for each in made.values()}),
        "alpha": sorted({_alpha(each, power) for each in made.values()}),
        "variant": sorted({_kind(each.magnitude is not None) for each in made.values()}),
    }
    ours = {
        "targets": sorted(lora.adapters(jax.eval_shape(new))),
        "rank": [given.rank],
        "alpha": [given.alpha],
        "variant": [_kind(given.variant == "dora")],
    }
    for name in ours:
        if SCHEMA.given(config, f"trainable.{name}") and ours[name] != theirs[name]:
            sides = (", ".join(map(str, each[name])) for each in (ours, theirs))
            yield "trainable.{} is {}; the adapter's is {}".format(name, *sides)


def _alpha(adapter: lora.Lora, power: float) -> float:
    """Its alpha."""
    return round(float(np.max(adapter.scale)) * adapter.a.shape[-1] ** power, 4)


def _kind(magnitude: bool) -> str:
    return "dora" if magnitude else "lora or rslora"


def parameters(leaves: Any) -> int:
    """How many numbers there are in a tree; a quantised weight has those it stands for."""
    found = jax.tree.leaves(leaves, is_leaf=quant.is_quantized)
    return sum(math.prod(leaf.shape) for leaf in found)


def trained_leaves(selected: dict, mesh: Mesh) -> Iterator[dict[str, str]]:
    """A row of a table for each leaf that trains."""
    for path, leaf in tree.flatten(selected).items():
        where = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        yield {
            "leaf": path,
            "shape": " × ".join(map(str, leaf.shape)) or "one number",
            "parameters": f"{math.prod(leaf.shape):,}",
            "over": " ".join(str(axis) for axis in where if axis) if mesh.size > 1 else "",
        }
