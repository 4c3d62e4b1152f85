"""The schema of a run: every field, its type, its default and what it does.

A config file is Python with a `get_config()` that returns what differs from the defaults here, as
a `ConfigDict` or a dictionary. `load` reads it into a `Config`, the only form that a run sees.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtune.config import python_file
from jaxtune.config.fields import ConfigError as ConfigError
from jaxtune.config.fields import Conflicts, Pattern, Schema, When, about, override

REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w([\w.-]*\w)?", re.ASCII)
LORA: When = ("kind", ("lora",))
ADAM: When = ("name", ("adamw", "adamw8bit"))
ADAM_OR_LION: When = ("name", ("adamw", "adamw8bit", "lion"))


@dataclass(frozen=True)
class Model:
    """The checkpoint that is tuned."""

    path: str = about(
        "",
        "the checkpoint: a directory, or owner/name or owner/name@revision on the Hub",
        needed=True,
        also="base base_model model_name model_name_or_path",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = about(
        "auto", "dtype of the frozen weights; auto keeps the stored one", also="torch_dtype"
    )
    quant: (
        Literal["nf4", "nf4-double", "int4", "int8"] | tuple[tuple[Pattern, str | None], ...] | None
    ) = about(
        None,
        "hold the layers' linear maps in 4 or 8 bits, or those that patterns over paths name",
        also="load_in_4bit load_in_8bit quantization bnb_4bit_quant_type",
    )
    compute: Literal["auto", "float32", "bfloat16"] = about(
        "auto",
        "dtype of activations; auto is float32 where any weight is, and else bfloat16 where the "
        "hardware has it",
        also="bf16 fp16 mixed_precision",
    )
    attention: Literal["auto", "plain", "splash", "cudnn"] = about(
        "auto", "how it is computed; auto takes the machine's fused kernel wherever that can serve"
    )
    remat: Literal["full", "dots", "none"] = about(
        "full",
        "what of a layer is computed twice, to save memory: all, all but its linear maps, nothing",
        also="gradient_checkpointing activation_checkpointing",
    )


@dataclass(frozen=True)
class Data:
    """The rows to train on, and how a row becomes text."""

    source: tuple[str, ...] | str = about(
        "",
        "files (.jsonl, .csv, .tsv, .parquet), globs, a saved dataset or the id of one on the Hub",
        needed=True,
        also="train path dataset dataset_name train_file",
    )
    split: str = about("train", "which part of a dataset; files have none")
    subset: str = about("", "which configuration of a dataset", also="dataset_config_name")
    revision: str = about("", "branch, tag or commit of a dataset on the Hub; empty: the newest")
    rows: int | None = about(
        None, "use the first so many; None: all", least=1, also="train_size limit"
    )
    prefix: str = about(
        "{prefix}", "template of what is read and not scored; {name} is a column of the row"
    )
    suffix: str = about("{suffix}", "template of what is learnt; an end token follows it")
    end: str = about("", "the end token that follows suffix; empty: the tokenizer's EOS")
    messages: str = about(
        "",
        "instead of prefix and suffix: the column of chat messages, for the tokenizer's template",
    )
    turns: Literal["all", "last"] = about("all", "which of the assistant's turns are scored")
    task: str = about(
        "", "instead of prefix and suffix: the module of jaxtune/tasks that writes them"
    )
    columns: tuple[tuple[str, str], ...] = about(
        (), "a dictionary of the columns that the file calls otherwise: {task's name: file's name}"
    )
    image: str = about(
        "image",
        "where the model sees pictures: the column with a row's picture, as a path or as bytes, or "
        "with a list of such; empty: none is read, and rows are text alone",
        also="image_column images",
    )
    image_root: str = about(
        "", "the folder that pictures' paths start from; empty: that of the row's own file"
    )
    augment: tuple[tuple[Literal["crop", "flip", "colour"], float], ...] = about(
        (),
        "pictures differ each epoch, in training: (crop, least share of the area that is kept), "
        "(flip, chance to be mirrored), (colour, share that brightness and colours stray by)",
        least=0,
    )
    tokenizer: str = about("", "the tokenizer's directory or file; empty: the checkpoint's own")
    bad_rows: Literal["fail", "skip"] = about(
        "fail", "a row that cannot be used stops the run, or is left out and counted"
    )
    too_long: Literal["fail", "skip", "cut_prefix", "cut_suffix"] = about(
        "fail",
        "a row above batch.max_length stops the run, or is left out, or loses the start of its "
        "prefix or the end of its suffix; all are counted",
        also="truncation",
    )
    shuffle: bool = about(True, "take rows in another order each epoch")
    workers: int = about(2, "threads that prepare batches ahead", least=0, also="num_workers")


@dataclass(frozen=True)
class Trainable:
    """Which weights are tuned, and by what."""

    kind: Literal["lora", "attention", "full", "rules"] = about(
        "lora", "tune adapters, the attention's weights, all weights, or those that rules name"
    )
    rank: int = about(
        8, "columns of an adapter's a, and rows of its b", least=1, when=LORA, also="r lora_r"
    )
    alpha: float = about(
        16.0,
        "adapters are scaled by alpha / rank; as rslora by alpha / √rank",
        above=0,
        when=LORA,
        also="lora_alpha",
    )
    dropout: float = about(
        0.0,
        "share of their input that adapters do not see in training",
        least=0,
        below=1,
        when=LORA,
        also="lora_dropout",
    )
    targets: Literal["all-linear", "attention"] | tuple[Pattern, ...] = about(
        "all-linear",
        "the weights that get an adapter, by name or by path",
        needed=True,
        when=LORA,
        also="target_modules",
    )
    variant: Literal["lora", "rslora", "dora"] = about(
        "lora", "how adapters are scaled and applied", when=LORA, also="use_dora use_rslora"
    )
    init: Literal["default", "pissa"] = about(
        "default",
        "adapters begin as nothing, or as the weights' principal part",
        when=LORA,
        also="init_lora_weights",
    )
    adapter: str = about(
        "",
        "an adapter to go on training instead of new ones, a directory or Hub repository; of rank, "
        "alpha, targets and variant, those that are set must be its own",
        when=LORA,
        also="adapter_name_or_path resume_adapter",
    )
    lora_plus: float = about(
        1.0,
        "learning rate of adapters' b as a multiple of their a's",
        above=0,
        when=LORA,
        also="loraplus_lr_ratio",
    )
    rules: tuple[tuple[Pattern, bool], ...] = about(
        (),
        "whether a leaf is tuned: what the first pattern says that matches its path",
        needed=True,
        when=("kind", ("rules",)),
    )


@dataclass(frozen=True)
class Optim:
    """How gradients change weights."""

    name: Literal["adamw", "adamw8bit", "sgd", "adafactor", "lion"] = about(
        "adamw",
        "the optimiser; adamw8bit holds its moments in a quarter of the memory",
        also="optimizer",
    )
    lr: float = about(1e-4, "learning rate at its highest", least=0, also="learning_rate")
    weight_decay: float = about(
        0.0, "weights shrink by lr times this share each step", least=0, also="wd"
    )
    b1: float = about(
        0.9,
        "share kept of the mean of gradients",
        least=0,
        below=1,
        when=ADAM_OR_LION,
        also="beta1 betas adam_beta1",
    )
    b2: float = about(
        0.999,
        "share kept of the mean of their squares; lion: of the mean it stores",
        least=0,
        below=1,
        when=ADAM_OR_LION,
        also="beta2 adam_beta2",
    )
    epsilon: float = about(
        1e-8, "added to the root it divides by", above=0, when=ADAM, also="eps adam_epsilon"
    )
    momentum: float = about(
        0.0, "share kept of the last change", least=0, below=1, when=("name", ("sgd",))
    )
    clip_norm: float | None = about(
        1.0,
        "a longer gradient is shortened to this norm; None: never",
        above=0,
        also="max_grad_norm",
    )
    rates: tuple[tuple[Pattern, float], ...] = about(
        (), "factors on lr: of the first pattern that matches a leaf, or 1", least=0
    )
    decays: tuple[tuple[Pattern, float], ...] = about(
        (),
        "factors on weight_decay, likewise, or 0 for norms and biases and 1 for the rest",
        least=0,
    )


@dataclass(frozen=True)
class Schedule:
    """How the learning rate rises and falls."""

    name: Literal["constant", "linear", "cosine", "wsd"] = about(
        "linear",
        "after warming up: stay, fall in a line or a cosine, or stay and fall in the end (wsd)",
        also="scheduler lr_scheduler lr_scheduler_type",
    )
    warmup: int | float = about(
        0,
        "steps, or share of all steps, in which the rate rises from 0",
        least=0,
        share=True,
        also="warmup_steps warmup_ratio",
    )
    decay: int | float = about(
        0.1,
        "steps, or share of all steps, of the fall in the end",
        least=0,
        share=True,
        when=("name", ("wsd",)),
    )


@dataclass(frozen=True)
class Batch:
    """How rows make a step."""

    rows: int = about(
        16,
        "rows of a step, in all its parts and on all devices; with packing, lines of packed rows",
        least=1,
        also="size batch_size per_device_train_batch_size",
    )
    accumulate: int = about(
        1,
        "parts that a step is computed in, to save memory; the result is the same",
        least=1,
        also="gradient_accumulation_steps",
    )
    max_length: int = about(
        1024,
        "tokens of the longest row, prefix and suffix together",
        least=2,
        also="max_seq_length seq_len sequence_length",
    )
    packing: bool = about(False, "put several rows on a line of max_length; none sees another")
    buckets: tuple[int, ...] = about(
        (),
        "lengths that rows are padded to, rising; empty: a few that suit the data",
        least=1,
        when=("packing", (False,)),
    )
    weighting: Literal["token", "example"] = about(
        "token", "what counts alike in a step's loss: every scored token, or every row of data"
    )


@dataclass(frozen=True)
class Eval:
    """Rows to measure the loss on; there are none without source, split or holdout."""

    source: tuple[str, ...] | str = about("", "where these rows are, as data.source; empty: there")
    split: str = about("", "which part of a dataset; empty: data.split")
    holdout: int | float = about(
        0, "rows, or share of all rows, set apart from those to train on", least=0, share=True
    )
    rows: int | None = about(None, "use the first so many; None: all", least=1, also="val_size")
    every: int | None = about(
        100, "steps between evaluations; None: only at the end", least=1, also="eval_steps"
    )
    patience: int | None = about(
        None,
        "stop after so many evaluations without a better loss; None: never",
        least=1,
        also="early_stopping early_stopping_patience",
    )
    answers: int = about(
        0, "answer the first so many rows, too, and score that as the task does", least=0
    )


@dataclass(frozen=True)
class Generate:
    """How rows are answered, in evaluations and by the generate command."""

    max_new_tokens: int = about(64, "tokens of an answer at most", least=1)
    temperature: float = about(
        0.0, "0 takes the likeliest token; above, tokens are drawn by chance", least=0
    )
    top_k: int | None = about(None, "draw among the so many likeliest tokens", least=1)
    top_p: float | None = about(
        None, "draw among the likeliest tokens that together have this chance", above=0
    )
    min_p: float | None = about(
        None, "draw among tokens with this share of the likeliest one's chance", least=0
    )
    repetition: float | None = about(
        None, "a penalty of tokens that were there already", above=0, also="repetition_penalty"
    )
    stops: tuple[str, ...] = about((), "texts that end an answer, beside the end tokens")
    batch: int = about(8, "rows answered at once", least=1)


@dataclass(frozen=True)
class Checkpoint:
    """What is kept of a run, to go on from and to choose from."""

    every: int | None = about(
        200, "steps between checkpoints; None: only at the end", least=1, also="save_steps"
    )
    keep: int = about(2, "keep so many of the newest", least=1, also="save_total_limit")
    best: bool = about(
        True, "keep the one that did best in evaluation too", also="load_best_model_at_end"
    )
    metric: str = about(
        "",
        "which metric of answers says what is best; empty: the loss",
        also="metric_for_best_model",
    )


@dataclass(frozen=True)
class Log:
    """Where a run says how it goes, beside its metrics.jsonl."""

    every: int = about(10, "steps between lines", least=1, also="logging_steps")
    tensorboard: bool = about(False, "write event files for TensorBoard")
    wandb: str = about(
        "", "project of Weights & Biases to log to; empty: none", also="project report_to"
    )


@dataclass(frozen=True)
class Hub:
    """Where on the Hugging Face Hub a run sends what it tuned; the token is HF_TOKEN's."""

    repo: str = about(
        "",
        "repository to push to: owner/name, or a name in the token's account; {name} in it is the "
        "run's name with the time it began; empty: none",
        also="hub_model_id push_to_hub",
    )
    private: bool = about(True, "push to a private repository only", also="hub_private_repo")
    every: Literal["end", "save"] = about(
        "end", "push the export at the end, or at every checkpoint too", also="hub_strategy"
    )
    wait: int = about(600, "seconds to wait for the last push when a run ends", least=0)


@dataclass(frozen=True)
class Mesh:
    """How many devices there are along each axis; -1 takes all that are left."""

    data: int = about(1, "devices that split a batch, each with all weights", least=-1)
    fsdp: int = about(-1, "devices that split a batch and the weights", least=-1)
    tensor: int = about(
        1, "devices that split heads and hidden features", least=-1, also="tp model"
    )


@dataclass(frozen=True)
class Config:
    """One run."""

    steps: int | None = about(
        None, "updates to make; None: as epochs says", least=1, also="max_steps"
    )
    epochs: float | None = about(
        None,
        "times to go through the rows; None, with no steps either: once",
        above=0,
        also="num_train_epochs",
    )
    seed: int = about(0, "decides the order of rows, new adapters and dropout", least=0)
    model: Model = Model()
    data: Data = Data()
    trainable: Trainable = Trainable()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    batch: Batch = Batch()
    eval: Eval = Eval()
    generate: Generate = Generate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    hub: Hub = Hub()
    mesh: Mesh = Mesh()


SCHEMA = Schema(Config)
SECTIONS, FIELDS = SCHEMA.sections, SCHEMA.fields  # by dotted key


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config that a file describes; `file.py:text` calls its `get_config(text)`.

    `overrides` are as typed at the terminal, `--config.optim.lr=3e-4`; of two for one key the last
    counts.
    """
    file, values = python_file.read(os.fspath(path), SECTIONS)
    settings = SCHEMA.settings(values, str(file))
    return SCHEMA.assembled([*settings, *map(override, overrides)], CHECKS)


def parse(values: Mapping[str, Any], origin: str = "config") -> Config:
    """The config of nested dictionaries, such as `resolved` gives."""
    return SCHEMA.assembled(SCHEMA.settings(python_file.plain(values), origin), CHECKS)


def resolved(config: Config) -> dict[str, Any]:
    """Every field, as nested dictionaries that JSON gives back as they are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def difference(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any]) -> list[str]:
    """What changed, a line a field: `optim.lr: 0.0001 -> 0.0003`."""
    plain = (resolved(each) if isinstance(each, Config) else each for each in (old, new))
    return SCHEMA.difference(*plain)


def describe() -> str:
    """Every field with its default, type and meaning, as text 100 columns wide."""
    return SCHEMA.describe("config")


def counted(amount: int | float, whole: int) -> int:
    """How many of `whole` an amount stands for; a share is rounded up, as transformers does."""
    return math.ceil(amount * whole) if isinstance(amount, float) else amount


# What fields say together: each check yields the keys at odds, and what to do about them.


def _length(config: Config) -> Conflicts:
    steps, schedule = config.steps, config.schedule
    if steps is not None and config.epochs is not None:
        yield ("steps", "epochs"), "both say how long to train; leave one out, or set it to None"
    parts = {"schedule.warmup": schedule.warmup}
    if schedule.name == "wsd":
        parts["schedule.decay"] = schedule.decay
    if steps is not None:
        taken = sum(counted(part, steps) for part in parts.values())
        if taken > steps:
            yield (
                (*parts, "steps"),
                f"found {taken} steps for this, and only {steps} in all; lower it, or train longer",
            )
    elif sum(part for part in parts.values() if isinstance(part, float)) > 1:
        yield tuple(parts), "together these shares are above 1, which is all steps; lower one"


def _batch(config: Config) -> Conflicts:
    batch = config.batch
    if batch.rows % batch.accumulate:
        yield (
            ("batch.rows", "batch.accumulate"),
            f"{batch.rows} rows make no {batch.accumulate} equal parts; "
            "expected rows to be a multiple of accumulate",
        )
    if list(batch.buckets) != sorted(set(batch.buckets)):
        yield ("batch.buckets",), f"found {list(batch.buckets)}, expected each above the last"
    elif batch.buckets and batch.buckets[-1] != batch.max_length:
        yield (
            ("batch.buckets", "batch.max_length"),
            f"the last bucket is {batch.buckets[-1]} and the longest row {batch.max_length}; "
            "make them the same",
        )


def _quantised(config: Config) -> Conflicts:
    quant = config.model.quant
    if not isinstance(quant, str):  # rules may leave out what trains
        known = get_args(get_args(FIELDS["model.quant"].type)[0])
        for kind in (kind for _, kind in quant or () if kind not in (None, *known)):
            yield ("model.quant",), f"found {kind!r}, expected {', '.join(known)} or None"
        return
    if config.trainable.kind in ("full", "attention"):
        yield (
            ("model.quant", "trainable.kind"),
            "quantised weights do not train; train adapters (lora), or leave model.quant out",
        )
    if SCHEMA.given(config, "trainable.init"):
        yield (
            ("model.quant", "trainable.init"),
            "pissa takes its start out of the weights, and quantised ones stay as they are; "
            "leave one of these out",
        )


def _continued(config: Config) -> Conflicts:
    if config.trainable.adapter and SCHEMA.given(config, "trainable.init"):
        yield (
            ("trainable.adapter", "trainable.init"),
            "an adapter that is there begins as it is; leave one of these out",
        )


def _mesh(config: Config) -> Conflicts:
    axes = {f"mesh.{name}": size for name, size in vars(config.mesh).items()}
    filling = tuple(key for key, size in axes.items() if size == -1)
    if len(filling) > 1:
        yield filling, "only one axis can take all devices left; give the others numbers"
    for key in (key for key, size in axes.items() if size == 0):
        yield (key,), "found 0, expected 1 or more, or -1 for all devices left"


def _text_of_rows(config: Config) -> Conflicts:
    ways = [
        SCHEMA.given(config, "data.prefix", "data.suffix"),
        SCHEMA.given(config, "data.messages"),
        SCHEMA.given(config, "data.task"),
    ]
    if sum(map(bool, ways)) > 1:
        yield sum(ways, ()), "each says how a row becomes text; expected one of these ways"
    for key, other in (("data.turns", "data.messages"), ("data.columns", "data.task")):
        if SCHEMA.given(config, key) and not SCHEMA.given(config, other):
            yield (key, other), f"{key} is read only with {other}; set that, or leave {key} out"


def _pictures(config: Config) -> Conflicts:
    data = config.data
    if not data.image:
        for key in SCHEMA.given(config, "data.image_root", "data.augment"):
            problem = f"no pictures are read; name their column, or leave out {key}"
            yield (key, "data.image"), problem
    names = [name for name, _ in data.augment]
    if len(set(names)) < len(names):
        yield ("data.augment",), f"found {', '.join(names)}; expected each once"
    for name, amount in data.augment:
        if amount > 1 or (name == "crop" and not amount):
            least = "above" if name == "crop" else "from"
            yield ("data.augment",), f"found {amount} for {name}, expected a share {least} 0 to 1"


def _evaluation(config: Config) -> Conflicts:
    named, held = (
        SCHEMA.given(config, "eval.source", "eval.split"),
        SCHEMA.given(config, "eval.holdout"),
    )
    train = (config.data.source, config.data.split)
    if named and held:
        yield (
            (*named, *held),
            "rows to evaluate come either from elsewhere or out of the training rows; keep one",
        )
    if config.checkpoint.metric and not config.eval.answers:
        yield (
            ("checkpoint.metric", "eval.answers"),
            "a metric of answers needs some: set eval.answers to a number of rows",
        )
    if named and (config.eval.source or train[0], config.eval.split or train[1]) == train:
        yield named, "these are the rows to train on; name others, or set eval.holdout instead"
    elif not named and not held:
        for key in SCHEMA.given(config, "eval.rows", "eval.patience"):
            yield (key,), "no rows to evaluate; set eval.source, eval.split or eval.holdout"


def _answers(config: Config) -> Conflicts:
    given = config.generate
    if "" in given.stops:
        yield ("generate.stops",), "found an empty text, which would end every answer at once"
    drawn = SCHEMA.given(config, "generate.top_k", "generate.top_p", "generate.min_p")
    if drawn and not given.temperature:
        yield (
            (*drawn, "generate.temperature"),
            "nothing is drawn by chance at a temperature of 0; raise it, or leave these out",
        )


def _repository(config: Config) -> Conflicts:
    repo = config.hub.repo
    if repo and not REPOSITORY.fullmatch(repo.replace("{name}", "name")):
        yield (
            ("hub.repo",),
            f"found {repo!r}, expected owner/name or a name alone, of letters, digits, and ., _ or "
            "- between them, such as 'me/price-{name}'",
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
