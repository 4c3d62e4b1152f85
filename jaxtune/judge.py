"""The eval command: held-out loss and answers of a base and of what was tuned on it, compared."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtune import evaluation, wiring
from jaxtune.answering import Answerer
from jaxtune.checkpoint.adapter import load_adapter
from jaxtune.checkpoint.hub import locate
from jaxtune.config import Config
from jaxtune.data.textfiles import stamp
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.evaluation import Question
from jaxtune.metrics import Answered, Metric, paired
from jaxtune.metrics.intervals import Difference, Figure
from jaxtune.models.decoder import Decoder
from jaxtune.progress import Progress
from jaxtune.terminal import grid
from jaxtune.workdir import begun, write_json

LESS = "tuned less base"


@dataclass(frozen=True)
class Contender:
    """A model that is asked."""

    name: str  # base or tuned
    model: Decoder
    variables: dict
    about: Mapping[str, Any]  # what its answers depend on


@dataclass(frozen=True)
class Verdict:
    """What came of one."""

    loss: float
    figures: dict[str, Figure]
    rows: list[Answered]
    directory: Path


def judge(
    config: Config,
    workdir: Path,
    *,
    base: bool = False,
    tuned: bool = True,
    adapter: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate the base, what was tuned on it or both, and write what was found."""
    progress = progress or Progress()
    directory = locate(config.model.path)
    exported = tuned_at(workdir, adapter) if tuned else None
    tokenizer = wiring.tokenizer(config, directory, begun(workdir))
    prompt = wiring.prompt(config, tokenizer)
    _, source = wiring.sources(config)
    if source is None:
        raise ValueError(
            "the config has no rows to evaluate on: set eval.source, eval.split or eval.holdout"
        )
    asked = evaluation.questions(config, source, prompt)
    rows = wiring.read(config, source, prompt, progress)
    mesh = wiring.mesh(config)
    place = wiring.placer(config, mesh)
    found: dict[str, Verdict] = {}
    about = _about(config, asked)
    for contender in _contenders(config, directory, mesh, exported, base, about):
        progress.draw(f"{contender.name}: held-out loss")
        loader = wiring.evaluating(config, rows, place.share)
        loss = evaluation.loss(contender.model, contender.variables, loader, place)
        loader.close()
        found[contender.name] = _asked(config, workdir, contender, tokenizer, asked, loss, progress)
    return _told(config, workdir, found, progress)


def tuned_variables(
    config: Config, model: Decoder, base: Mapping, tuned: Path, mesh: Any
) -> tuple[Decoder, dict]:
    """What a run has exported: an adapter on the base, or a whole model in its place."""
    if (tuned / "adapter_config.json").is_file():
        return model, load_adapter(model, base, tuned)
    return wiring.base(replace(config, model=replace(config.model, quant=None)), tuned, mesh)


def tuned_at(workdir: Path, adapter: str | None) -> Path:
    """Where the tuned weights are."""
    if adapter is not None:
        return locate(adapter)
    for name in ("adapter", "merged"):
        if (workdir / "export" / name).is_dir():
            return workdir / "export" / name
    raise ValueError(
        f"{workdir / 'export'} holds no adapter and no merged model: train first, name the run's"
        " --workdir or an --adapter, or take --base alone"
    )


def _about(config: Config, asked: Sequence[Question]) -> dict[str, Any]:
    """What all answers depend on; not how many are asked at once, nor what the loss takes."""
    rows = [(each.number, each.place, each.prompt, each.references) for each in asked]
    generate = {name: value for name, value in vars(config.generate).items() if name != "batch"}
    return {
        "model": vars(config.model),
        "generate": generate,
        "seed": config.seed,
        "task": config.data.task,
        "rows": len(rows),
        "asked": evaluation.digest(rows),
    }


def _files(directory: Path) -> list:
    """What changes when weights do, wherever the directory is moved."""
    return [[file.name, *stamp(file)[1:]] for file in sorted(directory.glob("*.safetensors"))]


def _contenders(
    config: Config,
    directory: Path,
    mesh: Any,
    tuned: Path | None,
    base: bool,
    about: Mapping[str, Any],
) -> Iterator[Contender]:
    """One after the other: the base first, as the other stands on it."""
    model, variables = wiring.base(config, directory, mesh)
    about = {**about, "base": _files(directory)}
    if base:
        yield Contender("base", model, variables, about)
    if tuned is not None:
        model, variables = tuned_variables(config, model, variables, tuned, mesh)
        yield Contender("tuned", model, variables, about | {"tuned": _files(tuned)})


def _asked(
    config: Config,
    workdir: Path,
    contender: Contender,
    tokenizer: Tokenizer,
    asked: list,
    loss: float,
    progress: Progress,
) -> Verdict:
    answerer = Answerer(
        contender.model, contender.variables, tokenizer, config.generate, config.seed
    )
    about = json.loads(json.dumps(contender.about))
    where = workdir / "eval" / f"{contender.name}-{evaluation.digest(about)}"
    figures, rows = evaluation.evaluate(answerer, asked, config, where, progress, about)
    return Verdict(loss, figures, rows, where)


def _told(
    config: Config, workdir: Path, found: dict[str, Verdict], progress: Progress
) -> dict[str, Any]:
    """The table, and the same as JSON."""
    metrics = evaluation.metrics_of(config)
    content: dict[str, Any] = {
        name: {
            "loss": verdict.loss,
            "perplexity": math.exp(verdict.loss),
            "rows": len(verdict.rows),
            "metrics": {key: vars(figure) for key, figure in verdict.figures.items()},
            "predictions": str(verdict.directory / evaluation.WHOLE),
        }
        for name, verdict in found.items()
    }
    gained: dict[str, Difference] = {}
    if len(found) == 2:
        first, second = found.values()
        gained = paired(metrics, first.rows, second.rows)
        content["tuned_less_base"] = {
            name: {**vars(each.difference), "intervals_overlap": each.overlap}
            for name, each in gained.items()
        }
    write_json(workdir / "eval.json", content)
    for line in _table(metrics, found, gained):
        progress.say(line)
    progress.say(f"written to {workdir / 'eval.json'}; predictions and scores beside it")
    return content


def _table(
    metrics: tuple[Metric, ...], found: dict[str, Verdict], gained: dict[str, Difference]
) -> list[str]:
    """A row for each figure: that of each model, and the difference where there are two."""
    better = {True: "higher is better", False: "lower is better"}
    rows = [
        {"": metric.name}
        | {name: _shown(verdict.figures[metric.name]) for name, verdict in found.items()}
        | ({LESS: _shown(gained[metric.name].difference)} if gained else {})
        | {" ": better[metric.higher]}
        for metric in metrics
    ]
    losses = [verdict.loss for verdict in found.values()]
    rows.append(
        {"": "held-out loss"}
        | {name: f"{verdict.loss:.4f}" for name, verdict in found.items()}
        | ({LESS: f"{losses[1] - losses[0]:.4f}"} if gained else {})
        | {" ": better[False]}
    )
    numbers = [*found, *([LESS] if gained else [])]
    return grid(["", *numbers, " "], rows, numbers)


def _shown(figure: Figure) -> str:
    if figure.value is None or figure.low is None:
        return "-"
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
