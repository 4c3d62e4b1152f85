"""Config sections for the model, data, trainable weights, optimiser, schedule and batches."""

from dataclasses import dataclass
from typing import Literal

from jaxtune.config.fields import Pattern, When, about

LORA: When = ("kind", ("lora",))
ADAM: When = ("name", ("adamw", "adamw8bit"))
ADAM_OR_LION: When = ("name", ("adamw", "adamw8bit", "lion"))


@dataclass(frozen=True)
class Model:
    """The checkpoint to fine-tune, and how its weights are held and computed with."""

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
    """Which weights are trained, and whether directly or by adapters."""

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
    """The optimiser and its hyperparameters."""

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
    """The learning rate schedule: warmup, and how the rate falls afterwards."""

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
    """How rows are batched for a step: number, lengths, packing and weights in the loss."""

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
