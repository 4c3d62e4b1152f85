"""The eval command: held-out loss and answers of a base and of what was tuned on it, compared."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune import evaluation, wiring
from jaxtune.answering import Answerer
from jaxtune.checkpoint.adapter import load_adapter
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.load import load
from jaxtune.config import Config
from jaxtune.data.textfiles import stamp
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.metrics import Answered, Metric, paired
from jaxtune.metrics.intervals import Figure
from jaxtune.models.decoder import Decoder
from jaxtune.progress import Progress
from jaxtune.terminal import grid
from jaxtune.workdir import begun, write_json


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
    for contender in _contenders(config, directory, mesh, exported, base):
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
    return load(tuned, config.model.dtype, mesh=mesh, attention=config.model.attention)


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


def _contenders(
    config: Config, directory: Path, mesh: Any, tuned: Path | None, base: bool
) -> Iterator[Contender]:
    """One after the other: the base first, as the other stands on it."""
    given = config.model
    model, variables = load(
        directory, given.dtype, given.quant, mesh=mesh, attention=given.attention
    )
    about = {"model": vars(given), "data": vars(config.data), "eval": vars(config.eval)}
    about |= {"generate": vars(config.generate), "seed": config.seed}
    if base:
        yield Contender("base", model, variables, about)
    if tuned is not None:
        model, variables = tuned_variables(config, model, variables, tuned, mesh)
        files = [stamp(file) for file in sorted(tuned.glob("*.safetensors"))]
        yield Contender("tuned", model, variables, about | {"tuned": files})


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
    if len(found) == 2:
        first, second = found.values()
        both = paired(metrics, first.rows, second.rows)
        content["tuned_less_base"] = {
            name: {**vars(each.difference), "intervals_overlap": each.overlap}
            for name, each in both.items()
        }
    write_json(workdir / "eval.json", content)
    for line in _table(metrics, found):
        progress.say(line)
    progress.say(f"written to {workdir / 'eval.json'}; predictions and scores beside it")
    return content


def _table(metrics: tuple[Metric, ...], found: dict[str, Verdict]) -> list[str]:
    better = {True: "higher is better", False: "lower is better"}
    rows = [
        {"": metric.name}
        | {name: _shown(verdict.figures[metric.name]) for name, verdict in found.items()}
        | {" ": better[metric.higher]}
        for metric in metrics
    ]
    rows.append(
        {"": "held-out loss"}
        | {name: f"{verdict.loss:.4f}" for name, verdict in found.items()}
        | {" ": better[False]}
    )
    return grid(["", *found, " "], rows, list(found))


def _shown(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
