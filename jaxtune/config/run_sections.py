"""Config sections for evaluation, decoding, checkpoints, logging, Hub pushes and the mesh."""

from dataclasses import dataclass
from typing import Literal

from jaxtune.config.fields import about


@dataclass(frozen=True)
class Eval:
    """Evaluation on held-out rows; there are none unless source, split or holdout is set."""

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
    """How answers are decoded, in evaluations and by the generate command."""

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
    """Run checkpoints: how often they are saved, and which are kept to resume or choose from."""

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
    """Logging of metrics, in addition to the run's metrics.jsonl."""

    every: int = about(10, "steps between lines", least=1, also="logging_steps")
    tensorboard: bool = about(False, "write event files for TensorBoard")
    wandb: str = about(
        "", "project of Weights & Biases to log to; empty: none", also="project report_to"
    )


@dataclass(frozen=True)
class Hub:
    """Where exports are pushed to on the Hugging Face Hub; HF_TOKEN holds the access token."""

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
    """Number of devices along each mesh axis; -1 takes all remaining devices."""

    data: int = about(1, "devices that split a batch, each with all weights", least=-1)
    fsdp: int = about(-1, "devices that split a batch and the weights", least=-1)
    tensor: int = about(
        1, "devices that split heads and hidden features", least=-1, also="tp model"
    )
