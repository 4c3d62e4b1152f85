"""Config sections for the model, data, trainable weights and batches."""

from dataclasses import dataclass
from typing import Literal

from jaxtune.config.fields import When, about
from jaxtune.config.values import Name, Pattern, Place

MANY = 1_000_000_000  # of steps or rows: counters on devices are 32 bits wide
LONGEST = 16_777_216  # tokens of a row

LORA: When = ("kind", ("lora",))


Value = bool | int | float | str | None  # of an option


@dataclass(frozen=True)
class Model:
    """The checkpoint to fine-tune, and the storage and compute types of its weights."""

    path: Place = about(
        "",
        "base checkpoint: a directory, an .npz file, or owner/name[@revision] on the Hub",
        needed=True,
        also="base base_model model_name model_name_or_path",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = about(
        "auto", "dtype of the frozen weights; auto keeps the stored dtype", also="torch_dtype"
    )
    quant: (
        Literal["nf4", "nf4-double", "int4", "int8"] | tuple[tuple[Pattern, str | None], ...] | None
    ) = about(
        None,
        "quantise the layers' linear maps to 4 or 8 bits; rules (pattern, kind) select the leaves",
        also="load_in_4bit load_in_8bit quantization bnb_4bit_quant_type",
    )
    compute: Literal["auto", "float32", "bfloat16", "float16"] = about(
        "auto",
        "dtype of activations; float16 holds them in float32 and multiplies them in scaled "
        "float16, which does not overflow; auto is float32 on CPUs and if any weight is float32, "
        "float16 on GPUs before Ampere that have tensor cores, otherwise bfloat16",
        also="bf16 fp16 mixed_precision",
    )
    attention: Literal["auto", "plain", "blockwise", "splash", "cudnn", "tokamax"] = about(
        "auto",
        "attention kernel; auto uses the device's fused kernel wherever possible, and elsewhere "
        "attends in blocks, or in the plain form if rows are short",
    )
    remat: Literal["full", "offload", "dots", "none"] = about(
        "full",
        "what the backward pass recomputes to save memory: whole layers, also with their inputs "
        "held in the host's memory, all but their linear maps, or nothing",
        also="gradient_checkpointing activation_checkpointing activation_offloading",
    )
    embedding: Literal["device", "host"] = about(
        "device",
        "where a frozen embedding that is not the output head is while training; host sends each "
        "step the vectors of its tokens alone, which saves the memory of all others; an objective "
        "then sees no other tokens",
        also="offload_embedding",
    )
    precision: Literal["auto", "highest", "tf32", "bf16x3", "default"] = about(
        "auto",
        "precision of products of float32: highest; tf32 or bf16x3, which are one choice, TF32 on "
        "GPUs and three bfloat16 passes on TPUs; default is what the device does unless told, TF32 "
        "or one bfloat16 pass; auto is highest if activations are float32",
        also="matmul_precision allow_tf32 float32_matmul_precision",
    )
    deterministic: bool = about(
        False,
        "compile programs for GPUs so that they return the same bits every time: scatters add in "
        "one order and kernels are not chosen by their time, which is slower; other devices do so "
        "anyway",
        also="use_deterministic_algorithms full_determinism",
    )


@dataclass(frozen=True)
class ChatOptions:
    """What the chat template is told besides the messages."""

    tools: Name = about(
        "",
        "column with the tools that a conversation may call, as a list of JSON schemas; empty: no "
        "tools",
    )
    options: tuple[tuple[str, Value], ...] = about(
        (),
        "variables for the template, as a dictionary, such as {'enable_thinking': False}",
        least=-1,
        most=1e9,
        usual="texts, True and False",
        also="chat_template_kwargs",
    )


@dataclass(frozen=True)
class Data:
    """The rows to train on, and how a row becomes text."""

    source: tuple[Place, ...] | Place = about(
        "",
        "files (.jsonl, .json, .csv, .tsv, .parquet), globs, a saved dataset, or a dataset on the "
        "Hub",
        needed=True,
        also="train path dataset dataset_name train_file",
    )
    split: Name = about("train", "split of the dataset; not used for files")
    subset: Name = about("", "configuration of the dataset", also="dataset_config_name")
    revision: Name = about(
        "", "branch, tag or commit of the dataset on the Hub; empty: the default branch"
    )
    rows: int | None = about(
        None,
        "maximum number of rows to use, from the start; None: all",
        least=1,
        most=MANY,
        also="train_size limit",
    )
    prefix: str = about(
        "{prefix}", "template of the prompt, which is not scored; {name} is a column of the row"
    )
    suffix: str = about(
        "{suffix}", "template of the completion, which is scored; the end token is appended"
    )
    end: str = about("", "end token of completions; empty: the tokenizer's EOS")
    messages: str = about(
        "",
        "instead of prefix and suffix: column of chat messages (role and content, or from and "
        "value), formatted by the chat template",
    )
    chat_template: str = about(
        "",
        "chat template to use: a file with a jinja template, or alpaca, chatml, gemma, llama2, "
        "llama3, phi3 or zephyr; empty: the tokenizer's own",
    )
    chat: ChatOptions = ChatOptions()
    turns: Literal["all", "last"] = about("all", "which assistant turns are scored")
    task: Name = about(
        "",
        "instead of prefix and suffix: module that writes prompt and completion, one of "
        "jaxtune/tasks, of an installed package, or a Python file",
    )
    columns: tuple[tuple[str, str], ...] = about(
        (), "columns named differently in the file, as a dictionary {name in task: name in file}"
    )
    image: str = about(
        "image",
        "for vision models: column with the row's picture (a path or bytes) or a list of pictures; "
        "empty: text only",
        also="image_column images",
    )
    image_root: Place = about(
        "", "folder that relative picture paths start from; empty: the folder of the data file"
    )
    augment: tuple[tuple[Literal["crop", "flip", "colour"], float], ...] = about(
        (),
        "augmentation in training: (crop, smallest share of the area kept), (flip, probability of "
        "mirroring), (colour, largest relative change of brightness and colours)",
        least=0,
        most=1,
    )
    tokenizer: Place = about("", "tokenizer directory or file; empty: the checkpoint's")
    bad_rows: Literal["fail", "skip"] = about(
        "fail", "malformed rows: stop the run, or skip and count them"
    )
    too_long: Literal["fail", "skip", "cut_prefix", "cut_suffix"] = about(
        "fail",
        "rows longer than batch.max_length: stop the run, skip them, or cut the start of the "
        "prompt or the end of the completion; skipped and cut rows are counted",
        also="truncation",
    )
    shuffle: bool = about(True, "reshuffle the rows each epoch")
    workers: int = about(
        2,
        "threads that prepare batches in advance",
        least=0,
        most=256,
        usual="1 to 8",
        also="num_workers",
    )


@dataclass(frozen=True)
class Trainable:
    """Which weights are trained, and whether directly or through adapters."""

    kind: Literal["lora", "attention", "full", "rules"] = about(
        "lora", "train adapters, the attention weights, all weights, or those selected by rules"
    )
    rank: int = about(
        8,
        "rank of the adapters",
        least=1,
        most=16_384,
        usual="4 to 128",
        when=LORA,
        also="r lora_r",
    )
    alpha: float = about(
        16.0,
        "adapters are scaled by alpha / rank, or with rslora by alpha / √rank",
        least=1e-6,
        most=1e6,
        usual="rank to 2 × rank",
        when=LORA,
        also="lora_alpha",
    )
    dropout: float = about(
        0.0,
        "dropout on the adapters' input",
        least=0,
        most=0.99,
        usual="0 to 0.1",
        when=LORA,
        also="lora_dropout",
    )
    targets: Literal["all-linear", "attention"] | tuple[Pattern, ...] = about(
        "all-linear",
        "weights that get an adapter: all linear maps of the layers, only those of attention, or "
        "those with a name of PEFT, such as q_proj, or whose paths match a pattern",
        needed=True,
        when=LORA,
        also="target_modules",
    )
    variant: Literal["lora", "rslora", "dora"] = about(
        "lora", "scaling and form of the adapters", when=LORA, also="use_dora use_rslora"
    )
    init: Literal["default", "pissa"] = about(
        "default",
        "adapters start at zero, or at the weights' principal part (PiSSA)",
        when=LORA,
        also="init_lora_weights",
    )
    adapter: Place = about(
        "",
        "adapter to continue training: a directory or Hub repository; rank, alpha, targets and "
        "variant, if set, must match it",
        when=LORA,
        also="adapter_name_or_path resume_adapter",
    )
    lora_plus: float = about(
        1.0,
        "LoRA+: learning rate of the adapters' matrix b, as a multiple of that of a",
        least=1e-3,
        most=1e3,
        usual="1 to 16",
        when=LORA,
        also="loraplus_lr_ratio",
    )
    rules: tuple[tuple[Pattern, bool], ...] = about(
        (),
        "whether a leaf trains, decided by the first pattern that matches its path",
        needed=True,
        when=("kind", ("rules",)),
    )


@dataclass(frozen=True)
class Batch:
    """How rows are batched for a step: number, lengths, packing and loss weighting."""

    rows: int = about(
        16,
        "rows per step, over all micro-batches and devices; with packing, packed lines per step",
        least=1,
        most=1_048_576,
        usual="8 to 256",
        also="size batch_size per_device_train_batch_size",
    )
    accumulate: int = about(
        1,
        "micro-batches per step, to save memory; the result is the same",
        least=1,
        most=1_048_576,
        usual="1 to 64",
        also="gradient_accumulation_steps",
    )
    max_length: int = about(
        1024,
        "maximum number of tokens per row, prompt and completion together",
        least=2,
        most=LONGEST,
        usual="128 to 8,192",
        also="max_seq_length seq_len sequence_length",
    )
    packing: bool = about(
        False, "pack several rows into lines of max_length tokens; no row attends to another"
    )
    buckets: tuple[int, ...] = about(
        (),
        "ascending lengths that rows are padded to; empty: a few lengths up to max_length",
        least=1,
        most=LONGEST,
        when=("packing", (False,)),
    )
    weighting: Literal["token", "example"] = about(
        "token", "what has equal weight in a step's loss: each scored token, or each row"
    )
