"""The eval command: compares held-out loss and answers of the base and the tuned model."""

import contextlib
import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.placer import Placer
from jaxtune.checkpoint.peft.load_adapter import load_adapter
from jaxtune.checkpoint.sources import locate
from jaxtune.config import training_sections as sections
from jaxtune.config.run_sections import Generate
from jaxtune.config.schema import Config
from jaxtune.data import images
from jaxtune.data.datafile import stamp
from jaxtune.data.images import Reference
from jaxtune.data.loader import Loader
from jaxtune.display.columns import grid
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress, Quiet
from jaxtune.evaluation import answer_page, held_out
from jaxtune.evaluation.held_out import EvalRow
from jaxtune.files import write_json, write_text
from jaxtune.files.fetched import known_as
from jaxtune.files.store import is_remote
from jaxtune.metrics import Metric, Prediction, paired
from jaxtune.metrics.intervals import Difference, Figure
from jaxtune.models.paligemma import Model
from jaxtune.training.objectives import CROSS_ENTROPY, Objective
from jaxtune.workdir import agreement
from jaxtune.workdir.directory import begun, claim, locked_directory

LESS = "tuned - base"
EVAL = "eval"  # subdirectory of the workdir with the answers and results of each evaluation
LARGEST = math.log(sys.float_info.max)  # largest loss with a finite perplexity
HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate."""

    name: str  # base or tuned
    model: Model
    variables: dict
    about: Mapping[str, Any]  # everything that its answers depend on, as JSON
    weights: Path  # the base checkpoint, the adapter or the tuned checkpoint


@dataclass(frozen=True)
class Result:
    """The evaluation of one candidate."""

    means: Mapping[str, float]  # held-out loss and metrics of the objective, by name
    figures: dict[str, Figure]
    rows: list[Prediction]
    directory: Path
    weights: Path
    page: Path | None = None  # HTML page of answers beside their pictures
    nats: bool = True  # whether the loss is the cross-entropy, in nats per scored token

    @property
    def numbers(self) -> dict[str, float]:
        """The held-out loss, and with the cross-entropy its perplexity: exp(loss)."""
        loss = self.means["loss"]
        if not self.nats:
            return {"loss": loss}
        return {"loss": loss, "perplexity": math.inf if loss > LARGEST else math.exp(loss)}

    @property
    def objective(self) -> dict[str, float]:
        """The means of the objective's metrics over the held-out rows."""
        return {name: value for name, value in self.means.items() if name != "loss"}


def compare(
    config: Config,
    workdir: Path,
    *,
    base: bool = False,
    tuned: bool = True,
    adapter: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluates the base, the tuned model or both, and writes the results.

    Answers go to a directory per candidate under `workdir/eval`, named by a digest of everything
    that they depend on, so that an interrupted evaluation resumes and a repeated one reuses them.
    All processes must call this; the first one writes and reports.

    Args:
      config: Config of the run; its `data` and `eval` sections name the held-out rows.
      workdir: Directory of the run. The results are written to `eval.json` in it.
      base: Whether to evaluate the base.
      tuned: Whether to evaluate the tuned model.
      adapter: Adapter to evaluate as the tuned model, a path or a Hub repository. By default it is
        the export of the run.
      progress: Display for progress and the table of results.

    Returns:
      The results as written to `eval.json`: an entry per candidate, and with two candidates the
      difference of each metric as `tuned_less_base`. Remarks of the task are added as `remarks`.
    """
    progress = (progress or Progress()) if agreement.first() else Quiet()
    assembly = Assembly.of(config, agreement.of_first(partial(begun, workdir)))
    exported = tuned_at(workdir, adapter) if tuned else None
    encoder, placer, task = assembly.encoder, assembly.eval_placer, assembly.task
    _, source = assembly.sources
    if source is None:
        raise UserError(
            "the config has no rows to evaluate on: set eval.source, eval.split or eval.holdout"
        )
    eval_rows = held_out.eval_rows(config.data, source, encoder, task)
    rows = assembly.survey(source, progress)
    found: dict[str, Result] = {}
    about = _about(config.model, config.generate, config.seed, config.data.task, eval_rows)
    agreement.refuse_different("the held-out rows", about)
    with _held(workdir):
        for candidate in _candidates(assembly, exported, base, about):
            progress.draw(f"{candidate.name}: computing the held-out loss")
            loader = assembly.evaluating(rows, placer)
            means = _held_out(candidate, loader, placer, assembly.objective)
            loader.close()
            where = workdir / EVAL / f"{candidate.name}-{held_out.digest(candidate.about)}"
            progress.draw(f"{candidate.name}: generating answers")
            generator = assembly.generator(candidate.model, candidate.variables)
            figures, predictions = held_out.evaluate(
                generator, eval_rows, task, assembly.metrics, where, progress, candidate.about
            )
            page = answer_page.write(where, eval_rows, task) if agreement.first() else None
            nats = assembly.objective == CROSS_ENTROPY
            found[candidate.name] = Result(
                means, figures, predictions, where, candidate.weights, page, nats
            )
        return agreement.of_first(partial(_told, assembly, workdir, found, progress))


@contextlib.contextmanager
def _held(workdir: Path) -> Iterator[None]:
    """Claims a workdir and locks its evaluations, in the first process for all."""
    with contextlib.ExitStack() as stack:

        def hold() -> None:
            claim(workdir)
            stack.enter_context(locked_directory(workdir / EVAL, "eval"))

        agreement.of_first(hold)
        yield


def tuned_model(
    assembly: Assembly, tuned: Path, base: tuple[Model, Mapping] | None = None
) -> tuple[Model, dict]:
    """Loads a tuned model: an adapter with its base, or a whole model without the base.

    Args:
      assembly: Parts of the run's config.
      tuned: Directory of an adapter, or a merged checkpoint, which is loaded unquantised.
      base: The base model and its variables, if they are loaded already.

    Returns:
      The model and its variables.
    """
    if not is_adapter(tuned):
        return assembly.base(tuned, quant=None)
    model, variables = base or assembly.base()
    return model, load_adapter(model, variables, tuned)


def is_adapter(tuned: Path) -> bool:
    """Returns whether tuned weights are an adapter, which needs its base."""
    return (tuned / "adapter_config.json").is_file()


def tuned_at(workdir: Path, adapter: str | None) -> Path:
    """Returns the path of the tuned weights: `adapter`, or else the export of the run."""
    if adapter is not None:
        return locate(adapter)
    for name in ("adapter", "merged", "merged.npz"):
        if (workdir / "export" / name).exists():
            return workdir / "export" / name
    raise UserError(
        f"{workdir / 'export'} contains no adapter or merged model: train first, pass the run's"
        " --workdir or an --adapter, or use --base"
    )


def _held_out(
    candidate: Candidate, loader: Loader, placer: Placer, objective: Objective
) -> dict[str, float]:
    """Returns the held-out loss and metrics of a candidate; raises LossError unless finite."""
    try:
        return held_out.means(candidate.model, candidate.variables, loader, placer, objective)
    except held_out.LossError as error:
        raise held_out.LossError(
            f"{candidate.weights}: {error}. Its weights hold NaN or infinity, or values that "
            "overflow: use an earlier checkpoint, or set model.compute to 'float32'"
        ) from None


def _about(
    model: sections.Model, generate: Generate, seed: int, task: str, eval_rows: Sequence[EvalRow]
) -> dict[str, Any]:
    """Returns everything but weights that the answers depend on.

    The batch size of generation and settings that affect only the loss are left out.
    """
    rows = [
        (each.number, each.place, each.prompt, each.references, *map(_picture, each.pictures))
        for each in eval_rows
    ]
    return {
        "model": vars(model),
        "generate": {name: value for name, value in vars(generate).items() if name != "batch"},
        "seed": seed,
        "task": task,
        "rows": len(rows),
        "asked": held_out.digest(rows),
    }


def _picture(reference: Reference) -> Any:
    """Returns a fingerprint of a picture: the CRC of its bytes, or its file's stamp."""
    return zlib.crc32(reference) if isinstance(reference, bytes) else _stamp(reference)


def _stamp(reference: str) -> list:
    return [reference, images.size(reference)] if is_remote(reference) else stamp(Path(reference))


def _files(weights: Path) -> list:
    """Returns [name, SHA-256] of each weight file, whatever their folder and modification times.

    Only the first process reads them.
    """
    return agreement.of_first(partial(_hashes, weights))


def _hashes(weights: Path) -> list:
    kinds = ("*.safetensors", "*.npz", "adapter_config.json")
    inside = (file for kind in kinds for file in weights.glob(kind))
    files = [weights] if weights.is_file() else sorted(inside)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash, files))
    return [[file.name, each] for file, each in zip(files, hashes, strict=True)]


def _hash(file: Path) -> str:
    """Returns the SHA-256 of a file; in the Hub's cache, it is the name of the resolved file."""
    name = file.resolve().name
    if HASH.fullmatch(name):
        return name
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _candidates(
    assembly: Assembly, tuned: Path | None, base: bool, about: Mapping[str, Any]
) -> Iterator[Candidate]:
    """Loads and yields the candidates one by one; an adapter builds on the loaded base."""
    of_base = {"base": _files(assembly.checkpoint)} if base or _needs_base(tuned) else {}
    loaded = None
    if base:
        loaded = assembly.base()
        yield Candidate("base", *loaded, _plain({**about, **of_base}), assembly.checkpoint)
    if tuned is not None:
        if not is_adapter(tuned):
            loaded, of_base = None, {}  # the base makes room for the merged model
        model, variables = tuned_model(assembly, tuned, loaded)
        about = _plain({**about, **of_base, "tuned": _files(tuned)})
        yield Candidate("tuned", model, variables, about, tuned)


def _needs_base(tuned: Path | None) -> bool:
    return tuned is not None and is_adapter(tuned)


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """Round-trips through JSON, so that the result equals the `about.json` read from disk."""
    return json.loads(json.dumps(about))


def _told(
    assembly: Assembly, workdir: Path, found: dict[str, Result], progress: Progress
) -> dict[str, Any]:
    """Prints the table of results and writes them as JSON; returns the JSON content.

    They are written twice: to `eval.json`, which the next evaluation overwrites, and to a file
    under `eval` named after the directories of the answers, which stays.
    """
    task, metrics = assembly.task, assembly.metrics
    plots, remarks = _plots(task, found), _remarks(task, found)
    content = {name: _content(result, plots[name]) for name, result in found.items()}
    gained: dict[str, Difference] = {}
    if len(found) == 2:
        first, second = found.values()
        gained = paired(metrics, first.rows, second.rows)
        content["tuned_less_base"] = {
            name: {**vars(each.difference), "intervals_overlap": each.overlap}
            for name, each in gained.items()
        }
    if remarks:
        content["remarks"] = remarks
    latest = workdir / "eval.json"
    names = [result.directory.name for result in found.values()]
    kept = workdir / EVAL / f"{'-'.join(['results', *names])}.json"
    for file in (kept, latest):
        write_json(file, content)
    for line in [*_table(metrics, assembly.higher, found, gained), *remarks]:
        progress.say(line)
    for name in found:
        if plots[name]:
            progress.say(f"plots of {name}: {', '.join(map(str, plots[name]))}")
        if found[name].page:
            progress.say(f"answers of {name} with their pictures: {found[name].page}")
    progress.say(f"results written to {latest}, with a permanent copy in {kept}")
    predictions = (str(result.directory / held_out.WHOLE) for result in found.values())
    progress.say(f"predictions written to {', '.join(predictions)}")
    return content


def _content(result: Result, plots: Sequence[Path]) -> dict[str, Any]:
    """Returns a result as JSON content, with None for a loss or perplexity that is not finite."""
    finite = {name: value for name, value in result.numbers.items() if math.isfinite(value)}
    return {
        **{"loss": None, "perplexity": None, **finite},
        **({"objective": result.objective} if result.objective else {}),
        "rows": len(result.rows),
        "metrics": {key: vars(figure) for key, figure in result.figures.items()},
        "weights": known_as(result.weights),
        "predictions": known_as(result.directory / held_out.WHOLE),
        **({"plots": list(map(known_as, plots))} if plots else {}),
        **({"page": known_as(result.page)} if result.page else {}),
    }


def _plots(task: ModuleType | None, found: Mapping[str, Result]) -> dict[str, list[Path]]:
    """Writes the task's plots beside the answers; returns their paths by candidate."""
    draw = getattr(task, "plots", None)
    drawn = draw({name: result.rows for name, result in found.items()}) if draw else {}
    for name, pictures in drawn.items():
        for file, svg in pictures.items():
            write_text(found[name].directory / file, svg)
    return {name: [found[name].directory / file for file in drawn.get(name, ())] for name in found}


def _remarks(task: ModuleType | None, found: Mapping[str, Result]) -> list[str]:
    """Returns the task's remarks on its metrics, without duplicates."""
    remark = getattr(task, "remarks", None)
    said = [each for result in found.values() for each in (remark(result.rows) if remark else ())]
    return list(dict.fromkeys(said))


def _table(
    metrics: tuple[Metric, ...],
    higher: Mapping[str, bool],
    found: dict[str, Result],
    gained: dict[str, Difference],
) -> list[str]:
    """Formats a line per metric: its value for each candidate, and their difference if two.

    `higher` says of metrics of the objective whether more is better, where it is known.
    """
    higher = {"loss": False, "perplexity": False, **higher}
    better = {True: "higher is better", False: "lower is better"}
    rows = [
        {"": metric.name}
        | {name: _shown(result.figures[metric.name]) for name, result in found.items()}
        | ({LESS: _shown(gained[metric.name].difference)} if gained else {})
        | {" ": better[metric.higher]}
        for metric in metrics
    ]
    (any_one, *_) = found.values()
    for key in (*any_one.numbers, *any_one.objective):
        values = {name: {**each.numbers, **each.objective}[key] for name, each in found.items()}
        change = {LESS: values["tuned"] - values["base"]} if gained else {}
        places = ".4g" if key == "perplexity" else ".4f"
        shown = {name: format(value, places) for name, value in (values | change).items()}
        title = key if key == "perplexity" else f"held-out {key}"
        rows.append({"": title} | shown | {" ": better[higher[key]] if key in higher else ""})
    numbers = [*found, *([LESS] if gained else [])]
    return grid(["", *numbers, " "], rows, numbers)


def _shown(figure: Figure) -> str:
    if figure.value is None or figure.low is None:
        return "-"
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
