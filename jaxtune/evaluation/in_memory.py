"""Evaluates a model in memory on rows in memory: its held-out loss, and its answers by metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax

from jaxtune import sharding, tasks
from jaxtune.assembly.placer import Placer, ways
from jaxtune.assembly.rows import pictures_for
from jaxtune.data.examples import Form, RowEncoder, Written
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Listed
from jaxtune.data.survey import survey
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import TextGenerator, settings_of, tokenizer_of
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.evaluation import held_out
from jaxtune.evaluation.held_out import EvalRow
from jaxtune.metrics import Metric, Prediction, summarise
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.intervals import Figure
from jaxtune.models.arguments import check_model, check_variables
from jaxtune.models.paligemma import Model
from jaxtune.training.objectives import CROSS_ENTROPY, Objective, as_objective


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    means: Mapping[str, float]  # the held-out loss, in nats per scored token, and metrics by name
    figures: Mapping[str, Figure]  # metrics of answers, with 95% bootstrap intervals
    predictions: Sequence[Prediction]  # an answer to each row, beside its references

    @property
    def loss(self) -> float:
        """The held-out loss."""
        return self.means["loss"]


def evaluate(
    model: Model,
    variables: Mapping,
    rows: Sequence[Mapping[str, Any]],
    form: Form | str,
    *,
    metrics: Sequence[Metric] | None = None,
    objective: Any = CROSS_ENTROPY,
    max_length: int = 1024,
    tokenizer: Tokenizer | None = None,
    **settings: Any,
) -> Evaluation:
    """Computes the held-out loss of rows, answers them, and scores the answers.

    Args:
      model: The model.
      variables: Its variables.
      rows: The rows, each a mapping from columns to values.
      form: How a row becomes a prompt and a completion: a `Template`, a `Chat`, or a task by its
        name or the path of its file.
      metrics: Metrics of the answers; by default those of the task, or exact match. An empty list:
        no answers are generated.
      objective: What the loss is; by default cross-entropy.
      max_length: Maximum number of tokens of a row.
      tokenizer: The tokenizer; by default that of the checkpoint.
      **settings: Fields of the config's section `generate`, of which `batch` is also the number of
        rows of a batch of the loss.

    Returns:
      The evaluation. Raises UserError for a row that cannot be read, and names it.
    """
    check_model(model)
    check_variables(variables)
    source, given = Listed(rows), settings_of(settings)
    task = tasks.find(form) if isinstance(form, str) else None
    tokenizer = tokenizer or tokenizer_of(model)
    encoder = _encoder(model, tokenizer, task, form, max_length, source[0])
    found = [
        held_out.eval_row(number, source[number], source.place(number), encoder, task)
        for number in range(len(source))
    ]
    means = _means(model, variables, source, encoder, given.batch, as_objective(objective))
    scores = metrics if metrics is not None else task.METRICS if task else (EXACT,)
    predictions = []
    if scores:
        generator = TextGenerator(model, variables, tokenizer, given)
        predictions = _predictions(generator, found, getattr(task, "NEXT", 0))
    return Evaluation(means, summarise(scores, predictions) if scores else {}, predictions)


def _predictions(
    generator: TextGenerator, rows: Sequence[EvalRow], likeliest: int
) -> list[Prediction]:
    """Answers rows, and returns each answer beside its references."""
    for row in rows:
        generator.check(row.prompt, row.place)
    prompts = [row.prompt for row in rows]
    answers = generator.answers(prompts, likeliest, held_out.pictures_of(rows))
    return [
        Prediction(answer.text, row.references, row.record, row.place, answer.next)
        for row, answer in zip(rows, answers, strict=True)
    ]


def _encoder(
    model: Model,
    tokenizer: Tokenizer,
    task: ModuleType | None,
    form: Form | str,
    max_length: int,
    row: Mapping[str, Any],
) -> RowEncoder:
    """Returns the encoder of rows, which reads pictures if the model takes some and `row` has."""
    written = Written(task.prefix, task.suffix) if task else form
    if not hasattr(written, "spans"):
        raise UserError(
            f"form is {typed(form)}; expected a jaxtune.Template, a jaxtune.Chat, or the "
            "name or file of a task"
        )
    pictures = pictures_for(model)
    return RowEncoder(
        tokenizer,
        written,
        max_length,
        full_prefix=pictures is not None,
        pictures=pictures if "image" in row else None,
    )


def _means(
    model: Model,
    variables: Mapping,
    source: Listed,
    encoder: RowEncoder,
    size: int,
    objective: Objective,
) -> dict[str, float]:
    """Returns the weighted means of the loss and the objective's metrics over rows."""
    mesh = sharding.mesh_under(variables["params"])
    mesh = mesh or sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    among = ways(mesh)
    placer = Placer(mesh, -(-size // among) * among, packing=False)
    loader = Loader(source, encoder, survey(source, encoder), batch=placer.rows, workers=0)
    try:
        return held_out.means(model, variables, loader, placer, objective)
    finally:
        loader.close()
