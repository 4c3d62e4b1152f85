"""Consistency checks across config fields; the limits of a single field are in its section."""

import re
from typing import get_args

from jaxtune.config.fields import Conflicts
from jaxtune.config.schema import FIELDS, SCHEMA, Config, counted

MOST_TOKENS = 2**30  # of a step, padding included
LEAST_TEMPERATURE = 1e-3  # above 0: logits are divided by it
REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w([\w.-]*\w)?", re.ASCII)

# Each check yields the keys that conflict, and a message that says how to resolve the conflict.


def _length(config: Config) -> Conflicts:
    """Checks that only one of steps and epochs is set, and that warmup and decay fit in the run."""
    steps, schedule = config.steps, config.schedule
    if steps is not None and config.epochs is not None:
        yield ("steps", "epochs"), "both set how long to train; remove one, or set it to None"
    parts = {"schedule.warmup": schedule.warmup}
    if schedule.name == "wsd":
        parts["schedule.decay"] = schedule.decay
    if steps is not None:
        taken = sum(counted(part, steps) for part in parts.values())
        if taken > steps:
            phases = " and ".join(key.removeprefix("schedule.") for key in parts)
            yield (
                (*parts, "steps"),
                f"found {taken} steps of {phases}, but the run has only {steps}; lower them, or "
                "train longer",
            )
    elif sum(part for part in parts.values() if isinstance(part, float)) > 1:
        yield tuple(parts), "together these shares exceed 1, the whole run; lower one"


def _batch(config: Config) -> Conflicts:
    """Checks that rows divide into micro-batches, and that buckets ascend up to the longest row."""
    batch = config.batch
    if batch.rows % batch.accumulate:
        yield (
            ("batch.rows", "batch.accumulate"),
            f"{batch.rows} rows cannot be split into {batch.accumulate} equal micro-batches; "
            "make rows a multiple of accumulate",
        )
    if batch.rows * batch.max_length > MOST_TOKENS:
        yield (
            ("batch.rows", "batch.max_length"),
            f"{batch.rows:,} rows of up to {batch.max_length:,} tokens are more than the "
            f"{MOST_TOKENS:,} tokens that a step can have; lower one of these",
        )
    if list(batch.buckets) != sorted(set(batch.buckets)):
        yield (
            ("batch.buckets",),
            f"found {list(batch.buckets)}, expected strictly ascending lengths",
        )
    elif batch.buckets and batch.buckets[-1] != batch.max_length:
        yield (
            ("batch.buckets", "batch.max_length"),
            f"the last bucket is {batch.buckets[-1]}, but max_length is {batch.max_length}; "
            "make them equal",
        )


def _quantised(config: Config) -> Conflicts:
    """Checks the kinds in quantisation rules, and that no quantised weight would be trained."""
    quant = config.model.quant
    if not isinstance(quant, str):  # rules may exclude the weights that train
        known = get_args(get_args(FIELDS["model.quant"].type)[0])
        for kind in (kind for _, kind in quant or () if kind not in (None, *known)):
            yield ("model.quant",), f"found {kind!r}, expected {', '.join(known)} or None"
        return
    if config.trainable.kind in ("full", "attention"):
        yield (
            ("model.quant", "trainable.kind"),
            "quantised weights cannot be trained; train adapters (lora), or remove model.quant",
        )
    if SCHEMA.given(config, "trainable.init"):
        yield (
            ("model.quant", "trainable.init"),
            "pissa subtracts the adapters' initial values from the base weights, which is not "
            "possible once they are quantised; remove one of these",
        )


def _continued(config: Config) -> Conflicts:
    """Checks that no initialisation is chosen for an adapter that already exists."""
    if config.trainable.adapter and SCHEMA.given(config, "trainable.init"):
        yield (
            ("trainable.adapter", "trainable.init"),
            "an existing adapter is loaded, not initialised; remove one of these",
        )


def _mesh(config: Config) -> Conflicts:
    """Checks the sizes of mesh axes, of which one at most may be -1."""
    axes = {f"mesh.{name}": size for name, size in vars(config.mesh).items()}
    filling = tuple(key for key, size in axes.items() if size == -1)
    if len(filling) > 1:
        yield filling, "only one axis can take all remaining devices; give the others a size"
    for key in (key for key, size in axes.items() if size == 0):
        yield (key,), "found 0, expected 1 or more, or -1 for all remaining devices"


def _text_of_rows(config: Config) -> Conflicts:
    """Checks that one way to turn rows into text is chosen, with no fields of another."""
    ways = [
        SCHEMA.given(config, "data.prefix", "data.suffix"),
        SCHEMA.given(config, "data.messages"),
        SCHEMA.given(config, "data.task"),
    ]
    if sum(map(bool, ways)) > 1:
        yield sum(ways, ()), "each defines how a row becomes text; choose one of these ways"
    needed = {
        "data.turns": "data.messages",
        "data.chat_template": "data.messages",
        "data.chat.tools": "data.messages",
        "data.chat.options": "data.messages",
        "data.columns": "data.task",
    }
    for key, other in needed.items():
        if SCHEMA.given(config, key) and not SCHEMA.given(config, other):
            yield (key, other), f"{key} is used only with {other}; set {other}, or remove {key}"


def _pictures(config: Config) -> Conflicts:
    """Checks that picture settings have an image column, and that augmentations are valid."""
    data = config.data
    if not data.image:
        for key in SCHEMA.given(config, "data.image_root", "data.augment"):
            problem = f"no pictures are read without data.image; set it, or remove {key}"
            yield (key, "data.image"), problem
    names = [name for name, _ in data.augment]
    if len(set(names)) < len(names):
        yield ("data.augment",), f"found {', '.join(names)}; expected each augmentation once"
    if ("crop", 0) in data.augment:
        yield ("data.augment",), "found 0 for crop, expected a share above 0 and at most 1"


def _evaluation(config: Config) -> Conflicts:
    """Checks that held-out rows have one source other than training, and exist where needed."""
    named, held = (
        SCHEMA.given(config, "eval.source", "eval.split"),
        SCHEMA.given(config, "eval.holdout"),
    )
    train = (config.data.source, config.data.split)
    if named and held:
        yield (
            (*named, *held),
            "held-out rows come either from their own source or split, or out of the training "
            "rows; set only one of these",
        )
    if config.checkpoint.metric and not (config.eval.answers or config.objective):
        yield (
            ("checkpoint.metric", "eval.answers"),
            "this metric scores answers, but none are generated; set eval.answers to a number of "
            "rows",
        )
    if named and (config.eval.source or train[0], config.eval.split or train[1]) == train:
        yield named, "these are the training rows; name others, or set eval.holdout instead"
    elif not named and not held:
        for key in SCHEMA.given(config, "eval.rows", "eval.patience"):
            yield (key,), "there are no held-out rows; set eval.source, eval.split or eval.holdout"


def _answers(config: Config) -> Conflicts:
    """Checks that no stop is empty, and that sampling filters have a temperature above 0."""
    given = config.generate
    if "" in given.stops:
        yield (
            ("generate.stops",),
            "found an empty string, which would end every answer at once; remove it",
        )
    if 0 < given.temperature < LEAST_TEMPERATURE:
        yield (
            ("generate.temperature",),
            f"found {given.temperature:g}, expected at least {LEAST_TEMPERATURE:g}, or 0 for "
            "greedy decoding",
        )
    drawn = SCHEMA.given(config, "generate.top_k", "generate.top_p", "generate.min_p")
    if drawn and not given.temperature:
        yield (
            (*drawn, "generate.temperature"),
            "a temperature of 0 means greedy decoding, without sampling; raise it, or remove the "
            "sampling filters",
        )


def _repository(config: Config) -> Conflicts:
    """Checks the form of the Hub repository's name."""
    repo = config.hub.repo
    if repo and not REPOSITORY.fullmatch(repo.replace("{name}", "name")):
        yield (
            ("hub.repo",),
            f"found {repo!r}, expected owner/name or just a name, of letters and digits with ., _ "
            "or - between them, such as 'me/price-{name}'",
        )


CHECKS = (
    _repository,
    _answers,
    _length,
    _batch,
    _quantised,
    _continued,
    _mesh,
    _text_of_rows,
    _pictures,
    _evaluation,
)
