"""Collects the facts of a card: the base, the exported files, and the records of the run."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxtune import files
from jaxtune.checkpoint.hub import NO_REPO_SUFFIXES, REPO_ID
from jaxtune.checkpoint.report import read_report
from jaxtune.config.schema import Config
from jaxtune.data.sources import on_hub
from jaxtune.display import plots
from jaxtune.display.panels import below as panels_below
from jaxtune.export.markdown import as_code, file_name, plain
from jaxtune.files import NUMBER
from jaxtune.workdir.journal import METRICS

Kind = Literal["adapter", "merged", "npz"]
README, CURVE = "README.md", "curve.svg"
LICENCE = ("license", "license_name", "license_link")
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_DRAWN = 500  # maximum number of points of a curve; beyond it, neighbours are averaged
KINDS = {"training": "train", "held-out": "eval"}  # of lines in metrics.jsonl
# What the lines hold besides the objective's metrics.
OWN = {"step", "kind", "epoch", "loss", "gradient_norm", "lr"}
OWN |= {"tokens", "scored_tokens", "examples"}
LOSS = {"step": int, "loss": NUMBER, "kind": str}
# Shapes of the records of a run, as `files.misfit` checks them.
SUMMARY = {
    **dict.fromkeys(("steps", "tokens", "examples", "trained_parameters", "parameters"), int),
    **dict.fromkeys(("epochs", "seconds", "tokens_per_second"), NUMBER),
    "stopped_early": bool,
    "devices": str,
    "memory": {"bytes": (int, None), "of": str},
    "eval_step?": (int, None),
}
FIGURE = dict.fromkeys(("value", "low", "high"), (*NUMBER, None))
ANSWERS = {
    "rows": int,
    "loss": (*NUMBER, None),
    "perplexity": (*NUMBER, None),
    "objective?": {...: NUMBER},
    "metrics": {...: FIGURE},
    "weights": str,
    "predictions": str,
}
EVALUATION = {
    "base?": ANSWERS,
    "tuned?": ANSWERS,
    "tuned_less_base?": {...: FIGURE},
    "remarks?": [str],
}


@dataclass(frozen=True)
class CardBase:
    """The base of a run."""

    name: str  # name of the repository on the Hub, or of the local directory or file
    hub: bool
    revision: str | None  # the requested revision
    directory: Path | None  # local directory or .npz file; None if it is not on this machine

    @classmethod
    def of(cls, spec: str, directory: Path | None) -> "CardBase":
        named = repository(spec)
        if named:
            repo, revision = named["repo"], named["revision"]
            return cls(repo, True, revision, directory or _cached(repo, revision))
        return cls(file_name(spec), False, None, directory or Path(spec).expanduser())

    @property
    def commit(self) -> str | None:
        """Commit on the Hub, from the name of the snapshot in the Hub's cache; None if unknown."""
        name = self.directory.name if self.hub and self.directory else ""
        return name if COMMIT.fullmatch(name) else None

    @cached_property
    def licence(self) -> dict[str, str]:
        """License fields of the base: from its card, or else from its config."""
        if self.directory is None or not self.directory.is_dir():
            return {}
        fields = {**read_json(self.directory / "config.json"), **metadata(self.directory / README)}
        return {name: fields[name] for name in LICENCE if isinstance(fields.get(name), str)}

    @property
    def text(self) -> str:
        """Markdown that names the base, as a link if it is on the Hub."""
        if not self.hub:
            return f"{as_code(self.name)} (a local checkpoint)"
        at = self.commit or self.revision
        link = f"[{plain(self.name)}](https://huggingface.co/{self.name})"
        return f"{link} at {as_code(at)}" if at else link


def _cached(repo: str, revision: str | None) -> Path | None:
    """Returns the cached snapshot of a repository, or None; sends no request to the Hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@dataclass(frozen=True)
class CardSubject:
    """The export that a card describes, with the run it came from."""

    target: Path
    name: str  # name of the exported directory or file in the card
    workdir: Path
    config: Config
    kind: Kind
    base: CardBase

    @cached_property
    def summary(self) -> dict[str, Any]:
        return read_json(self.workdir / "summary.json", SUMMARY)

    @cached_property
    def report(self) -> dict[str, Any]:
        return read_report(self.target)

    @property
    def step(self) -> int | None:
        """Step of the weights: from the report, or else that of the best evaluation or the last."""
        best = self.config.checkpoint.best and self.summary.get("eval_step")
        return self.report.get("step") or best or self.summary.get("steps")


def answered_by(subject: CardSubject, tuned: Mapping[str, Any]) -> str | None:
    """Describes which model gave the answers of an evaluation, to follow the word "answered".

    Args:
      subject: The export of the card.
      tuned: The entry `tuned` of `eval.json`.

    Returns:
      The description, or None unless the answers are by this export, or by the adapter of the same
      step that was merged into it.
    """
    about = subject.workdir / "eval" / Path(tuned["predictions"]).parent.name / "about.json"
    answered = read_json(about, {"tuned?": [[str]]}).get("tuned", ())
    weights = subject.workdir / "export" / Path(tuned["weights"]).name
    if same_files(subject.target, answered):
        return " by this model"
    of_one_step = read_report(weights).get("step") == subject.report.get("step")
    if subject.kind != "adapter" and of_one_step and same_files(weights, answered):
        return " by the adapter on its base, before merging"
    return None


def same_files(weights: Path, pairs: Sequence[Sequence[str]]) -> bool:
    """Returns whether a weight file, or the files of a directory, match (name, SHA-256) pairs."""
    return bool(pairs) and all(
        len(pair) == 2
        and file_hash(weights if weights.is_file() else weights / Path(pair[0]).name) == pair[1]
        for pair in pairs
    )


def file_hash(file: Path) -> str | None:
    """Returns the SHA-256 of a regular file, or None if there is none that can be read."""
    with contextlib.suppress(OSError):
        if file.is_file():
            with file.open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()
    return None


def curves_of(workdir: Path, objective: str) -> str | None:
    """Returns an SVG plot of the loss by step, with a panel for each metric of the objective.

    Args:
      workdir: Directory of the run.
      objective: The config's objective; empty for cross-entropy.

    Returns:
      The plot of values of training and held-out rows, or None if there are none.
    """
    lines = _lines(workdir)
    known = dict.fromkeys(name for line in lines if line["kind"] in KINDS.values() for name in line)
    panels = []
    for name in ["loss", *(name for name in known if name not in OWN)]:
        series = {of: _thinned(_points(lines, kind, name)) for of, kind in KINDS.items()}
        if any(series.values()):
            title = name if objective else "Loss per scored token"
            panels.append(plots.curves(series, title=title, y_label=name))
    return panels_below(panels) if panels else None


def held_out_values(workdir: Path) -> dict[str, dict[int, float]]:
    """Returns the held-out loss and the objective's metrics, each by step, from metrics.jsonl."""
    lines = [line for line in _lines(workdir) if line["kind"] == "eval"]
    names = dict.fromkeys(name for line in lines for name in line if name not in OWN)
    return {name: dict(_points(lines, "eval", name)) for name in ("loss", *names)}


def _points(lines: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) pairs of one metric in the journal's lines of one kind."""
    found = ((line["step"], line.get(name)) for line in lines if line["kind"] == kind)
    return [(step, value) for step, value in found if isinstance(value, int | float)]


def _lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without those that a run has not written."""
    file = workdir / METRICS
    content = file.read_bytes() if file.is_file() else b""
    # The text after the last newline may be an incomplete line.
    return [line for line in map(_loss_line, content.split(b"\n")[:-1]) if line]


def _loss_line(text: bytes) -> dict[str, Any] | None:
    """Returns a line of the journal with a finite loss, or None for any other line."""
    with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(text)
        if not files.misfit(line, LOSS) and math.isfinite(line["loss"]):
            return line
    return None


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Averages neighbouring points, so that at most `MOST_DRAWN` remain."""
    size = -(-len(points) // MOST_DRAWN) or 1
    groups = (np.asarray(points[k : k + size]) for k in range(0, len(points), size))
    return [(float(steps), float(loss)) for steps, loss in (each.mean(0) for each in groups)]


def repository(spec: str) -> re.Match | None:
    """Matches the id of a Hub repository; None for a local path, by the rules of loading."""
    local = not spec or Path(spec).expanduser().exists() or spec.endswith(NO_REPO_SUFFIXES)
    return None if local else REPO_ID.fullmatch(spec)


def listed(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def datasets(config: Config) -> list[str]:
    """Returns the Hub datasets that a run reads, without duplicates."""
    specs = [*listed(config.data.source), *listed(config.eval.source)]
    return [spec for spec in dict.fromkeys(specs) if on_hub(spec)]


def metadata(card: Path) -> dict[str, Any]:
    """Reads the front matter of a card; returns {} if the card is missing or malformed."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # disk, decoding and YAML errors, which share no base class
        return {}


def read_json(file: Path, shape: Any = dict) -> dict[str, Any]:
    """Reads a JSON object; returns {} if the file is missing, raises if it has another shape."""
    try:
        return files.read_json(file, shape)
    except (FileNotFoundError, NotADirectoryError):
        return {}
