"""Config sections for evaluation, decoding, checkpoints, logging, Hub pushes and the mesh."""

from dataclasses import dataclass
from typing import Literal

from jaxtune.config.fields import about
from jaxtune.config.training_sections import MANY
from jaxtune.config.values import Name, Place

DEVICES = 1_048_576  # on an axis of the mesh


@dataclass(frozen=True)
class Eval:
    """Evaluation on held-out rows; off unless source, split or holdout is set."""

    source: tuple[Place, ...] | Place = about(
        "", "source of the held-out rows, in the form of data.source; empty: data.source itself"
    )
    split: Name = about("", "split of the held-out rows; empty: data.split")
    holdout: int | float = about(
        0,
        "number or share of the training rows to hold out",
        least=0,
        most=MANY,
        share=True,
        usual="0.01 to 0.1, or some hundreds",
    )
    rows: int | None = about(
        None,
        "maximum number of held-out rows to use, from the start; None: all",
        least=1,
        most=MANY,
        also="val_size",
    )
    every: int | None = about(
        100,
        "steps between evaluations; None: only at the end",
        least=1,
        most=MANY,
        usual="50 to 1,000",
        also="eval_steps",
    )
    patience: int | None = about(
        None,
        "stop after this many evaluations without an improvement; None: never",
        least=1,
        most=MANY,
        usual="3 to 10",
        also="early_stopping early_stopping_patience",
    )
    answers: int = about(
        0,
        "number of held-out rows to answer at each evaluation; the answers are scored by metrics",
        least=0,
        most=MANY,
        usual="8 to 500",
    )
    metrics: tuple[Place, ...] = about(
        (),
        "metrics of answers, the most important one first: names of jaxtune's or of an installed "
        "package's, and Python files with METRICS; empty: those of the task, or exact",
        also="compute_metrics",
    )


@dataclass(frozen=True)
class Generate:
    """How answers are decoded, in evaluations and by the generate command."""

    max_new_tokens: int = about(
        64, "maximum number of tokens per answer", least=1, most=1_048_576, usual="16 to 2,048"
    )
    temperature: float = about(
        0.0, "sampling temperature; 0 is greedy decoding", least=0, most=100, usual="0 to 1"
    )
    top_k: int | None = about(
        None, "sample among the k most likely tokens", least=1, most=4_194_304, usual="20 to 100"
    )
    top_p: float | None = about(
        None,
        "sample among the most likely tokens, up to this total probability",
        above=0,
        most=1,
        usual="0.8 to 1",
    )
    min_p: float | None = about(
        None,
        "sample among tokens with at least this share of the highest probability",
        least=0,
        most=1,
        usual="0 to 0.1",
    )
    repetition: float | None = about(
        None,
        "repetition penalty on tokens of the prompt and the answer",
        least=0.01,
        most=100,
        usual="1 to 1.3",
        also="repetition_penalty",
    )
    stops: tuple[str, ...] = about((), "strings that end an answer, in addition to the end tokens")
    batch: int = about(8, "number of rows decoded together", least=1, most=65_536, usual="1 to 64")


@dataclass(frozen=True)
class Checkpoint:
    """Run checkpoints: how often they are saved, and which are kept to resume or choose from."""

    every: int | None = about(
        200,
        "steps between checkpoints; None: only at the end",
        least=1,
        most=MANY,
        usual="50 to 1,000",
        also="save_steps",
    )
    keep: int = about(
        2,
        "number of newest checkpoints to keep",
        least=1,
        most=MANY,
        usual="1 to 3",
        also="save_total_limit",
    )
    best: bool = about(
        True,
        "also keep the checkpoint that did best in evaluation, and export it",
        also="load_best_model_at_end",
    )
    metric: Name = about(
        "",
        "answer metric that selects the best checkpoint; empty: the held-out loss",
        also="metric_for_best_model",
    )


@dataclass(frozen=True)
class Log:
    """Logging of metrics, in addition to the run's metrics.jsonl."""

    every: int = about(
        10, "steps between log lines", least=1, most=MANY, usual="1 to 100", also="logging_steps"
    )
    tensorboard: bool = about(False, "write TensorBoard event files")
    wandb: Name = about(
        "", "Weights & Biases project to log to; empty: off", also="project report_to"
    )


@dataclass(frozen=True)
class Hub:
    """Hub repository that exports are pushed to; HF_TOKEN holds the access token."""

    repo: Name = about(
        "",
        "repository to push to: owner/name, or a name in the token's account; {name} is "
        "replaced by the run's name with its start time; empty: do not push",
        also="hub_model_id push_to_hub",
    )
    private: bool = about(True, "push to a private repository only", also="hub_private_repo")
    every: Literal["end", "save"] = about(
        "end", "push the export at the end, or also at every checkpoint", also="hub_strategy"
    )
    wait: int = about(
        600,
        "seconds to wait at the end of a run for the last push to finish",
        least=0,
        most=604_800,
        usual="60 to 3,600",
    )


@dataclass(frozen=True)
class Mesh:
    """Number of devices along each mesh axis; -1 takes all remaining devices."""

    data: int = about(
        1,
        "devices that split the batch, each with a full copy of the weights",
        least=-1,
        most=DEVICES,
        usual="1",
    )
    fsdp: int = about(
        -1, "devices that split the batch and the weights", least=-1, most=DEVICES, usual="-1"
    )
    tensor: int = about(
        1,
        "devices that split heads and hidden features",
        least=-1,
        most=DEVICES,
        usual="1 to 8",
        also="tp model",
    )
