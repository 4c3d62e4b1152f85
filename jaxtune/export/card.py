"""A model card beside what was exported: of what, on which rows, what came of it, how to load it.

It is Markdown under the front matter that the Hub reads. It tells what the run left in its workdir,
without what is missing there, and names local files without their folders.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

import jaxtune
from jaxtune.checkpoint.hub import NO_REPO_SUFFIXES, REPO_ID
from jaxtune.config import schema as configs
from jaxtune.config.schema import Config
from jaxtune.data.sources import HUB_NAME, READERS
from jaxtune.display import plots
from jaxtune.display.columns import size_text
from jaxtune.display.progress import duration
from jaxtune.files import write_text
from jaxtune.workdir.directory import FREE, begun
from jaxtune.workdir.journal import METRICS

Kind = Literal["adapter", "merged", "npz"]
README, CURVE, REPORT = "README.md", "curve.svg", "export.json"
# A card that was edited has another digest than its mark says, and is its editor's.
MARK = re.compile(r"---\n# jaxtune ([0-9a-f]{16}): [^\n]*\n")
MARKED = "---\n# jaxtune {}: an edited card is left as it is\n"
LICENCE = ("license", "license_name", "license_link")
TOLD = ("model.path", "data.source", "eval.source")  # not among the settings, but elsewhere
FILES = ("data.tokenizer", "data.image_root")  # settings that may name what is on this machine
PATH = re.compile(r"(?<![\w./])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+)+[/\\]([\w.@+-]+)")
SECRET = re.compile(r"\b(hf_)[A-Za-z0-9]{20,}")  # a token of the Hub, wherever it came from
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_DRAWN = 500  # points of a curve; of more, neighbours are averaged
OUTSIDE = "under transformers, and PEFT where it is an adapter"
MERGING = {"merged": "what merging changed"}
VARIANTS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
MERGED = {
    "lora": "with adapters of rank {rank} merged in",
    "attention": "with its attention tuned",
    "full": "with all weights tuned",
    "rules": "with those weights tuned that its rules name",
}


def write(
    directory: str | os.PathLike,
    workdir: Path,
    config: Config,
    *,
    kind: Kind,
    base: Path | None = None,
    name: str | None = None,
) -> Path | None:
    """Write the card of an exported directory into it, or of an .npz file beside that; its path.

    A card that is not as written here is left alone, and an adapter that is not from the run gets
    none: there is None. `base` is where the base lies on this machine, if the caller has looked,
    `name` what the directory will be called. Of many processes, one calls this.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(get_args(Kind))}")
    target = Path(directory).expanduser()
    file = place(target)
    known = _Base.of(config.model.path, base)
    subject = _Subject(target, name or target.name, Path(workdir), config, kind, known)
    if edited(file) or subject.report.get("adapter"):
        return None
    drawing = file.with_suffix(".svg").name if kind == "npz" else CURVE
    if curve := _curve(subject.workdir):
        write_text(file.with_name(drawing), curve)
    content = f"{_front(subject)}---\n\n{_body(subject, drawing if curve else None)}"
    content = SECRET.sub(r"\1…", content)
    write_text(file, MARKED.format(_digest(content)) + content)
    return file


def place(target: Path) -> Path:
    """Where the card of an exported directory or .npz file is."""
    return target.with_suffix(".md") if target.suffix == ".npz" else target / README


def edited(file: Path) -> bool:
    """Whether there is a card that somebody else wrote, or changed."""
    if not file.exists():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    mark = MARK.match(text)
    return mark is None or mark[1] != _digest(text[mark.end() :])


def carry(old: str | os.PathLike, new: str | os.PathLike) -> bool:
    """Copy somebody's own card to the directory that is about to replace the one it lies in."""
    mine, yours = place(Path(old).expanduser()), place(Path(new).expanduser())
    if mine.name != README or not edited(mine):  # that of a file lies beside it, and stays
        return False
    shutil.copyfile(mine, yours)
    return True


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Base:
    """The checkpoint that was tuned."""

    name: str  # on the Hub, or of the directory or file
    hub: bool
    revision: str | None  # that was asked for
    directory: Path | None  # or an .npz file

    @classmethod
    def of(cls, spec: str, directory: Path | None) -> "_Base":
        on_hub = _repository(spec)
        if on_hub:
            repo, revision = on_hub["repo"], on_hub["revision"]
            return cls(repo, True, revision, directory or _cached(repo, revision))
        return cls(_file_name(spec), False, None, directory or Path(spec).expanduser())

    @property
    def commit(self) -> str | None:
        """That of the Hub, after which its cache names a snapshot."""
        name = self.directory.name if self.hub and self.directory else ""
        return name if COMMIT.fullmatch(name) else None

    @cached_property
    def licence(self) -> dict[str, str]:
        """What its own card says, or else its config."""
        if self.directory is None or not self.directory.is_dir():
            return {}
        said = {**_json(self.directory / "config.json"), **_metadata(self.directory / README)}
        return {name: said[name] for name in LICENCE if isinstance(said.get(name), str)}

    @property
    def text(self) -> str:
        """It as Markdown."""
        if not self.hub:
            return f"`{self.name}` (a local checkpoint)"
        at = self.commit or self.revision
        return f"[{self.name}](https://huggingface.co/{self.name})" + (f" at `{at}`" if at else "")


def _cached(repo: str, revision: str | None) -> Path | None:
    """Where a repository was downloaded to, if it was; nothing is asked of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@dataclass(frozen=True)
class _Subject:
    """What a card tells of."""

    target: Path
    name: str  # of the directory or file
    workdir: Path
    config: Config
    kind: Kind
    base: _Base

    @cached_property
    def summary(self) -> dict[str, Any]:
        return _json(self.workdir / "summary.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        return _report(self.target)

    @property
    def step(self) -> int | None:
        """That the weights are of; a run exports the best evaluation's, if it kept that."""
        best = self.config.checkpoint.best and self.summary.get("eval_step")
        return self.report.get("step") or best or self.summary.get("steps")


def _front(subject: _Subject) -> str:
    """The front matter's fields; none is there that is not known."""
    from huggingface_hub import ModelCardData

    config = subject.config
    variant = config.trainable.variant
    tuned = ["lora", variant] if config.trainable.kind == "lora" else []
    tags = dict.fromkeys(filter(None, ["jaxtune", *tuned, config.data.task]))
    found = ModelCardData(
        base_model=subject.base.name if subject.base.hub else None,
        library_name={"adapter": "peft", "merged": "transformers"}.get(subject.kind),
        datasets=_datasets(config) or None,
        tags=list(tags),
        **subject.base.licence,
    )
    return found.to_yaml() + "\n"


def _body(subject: _Subject, curve: str | None) -> str:
    sections = {
        "Load it": _loading(subject),
        "Results": _results(subject, curve),
        "Data": _data(subject),
        "Settings": _settings(subject.config),
        "Verified": _verified(subject),
        "The run": _run(subject),
    }
    parts = [f"# {subject.workdir.resolve().name}", _summary(subject)]
    parts += [part for title, told in sections.items() if told for part in (f"## {title}", *told)]
    return "\n\n".join(parts) + "\n"


def _summary(subject: _Subject) -> str:
    trainable = subject.config.trainable
    if subject.kind == "adapter":
        # One that began as a part of the weights is written with twice the rank.
        rank = _json(subject.target / "adapter_config.json").get("r", trainable.rank)
        what = f"A {VARIANTS[trainable.variant]} adapter of rank {rank} for {subject.base.text}"
    else:
        how = MERGED[trainable.kind].format(rank=trainable.rank)
        what = f"{subject.base.text}, {how}"
    quant = subject.config.model.quant
    held = f" In training the base was held in {_kinds(quant)}." if quant else ""
    return f"{what}; tuned with jaxtune.{held}"


def _kinds(quant: Any) -> str:
    """The kinds of few bits that a setting names."""
    named = [quant] if isinstance(quant, str) else [kind for _, kind in quant if kind]
    return " and ".join(dict.fromkeys(named))


def _loading(subject: _Subject) -> list[str]:
    """The lines that load it in each of the libraries that can."""
    here, base = subject.name, subject.base
    at = f', revision="{base.revision}"' if base.revision else ""
    full = f"{base.name}@{base.revision}" if base.revision else base.name
    quant = subject.config.model.quant
    few = f', quant="{quant}"' if isinstance(quant, str) else ""
    within = base.directory if subject.kind == "adapter" else subject.target
    auto = _auto(within)
    lines = {
        "adapter": {
            "PEFT": (
                "import peft, transformers",
                f'base = transformers.{auto}.from_pretrained("{base.name}"{at})',
                f'model = peft.PeftModel.from_pretrained(base, "{here}")',
            ),
            "jaxtune": (
                "import jaxtune",
                f'model, variables = jaxtune.load("{full}"{few})',
                f'variables = jaxtune.load_adapter(model, variables, "{here}")',
            ),
        },
        "merged": {
            "transformers": (
                "import transformers",
                f'model = transformers.{auto}.from_pretrained("{here}")',
                *_companion(subject),
            ),
            "jaxtune": ("import jaxtune", f'model, variables = jaxtune.load("{here}")'),
        },
        "npz": {"jaxtune": ("import jaxtune", f'model, variables = jaxtune.load("{here}")')},
    }[subject.kind]
    if within and within.is_file():
        lines.pop("PEFT", None)  # transformers reads no .npz
    told = [_stands(subject)]
    for library, code in lines.items():
        told += [f"With {library}:", "\n".join(["```python", *code, "```"])]
    return told


def _stands(subject: _Subject) -> str:
    """What the names in the lines to load it mean."""
    here = f"`{subject.name}` stands for this "
    here += "file" if subject.kind == "npz" else "directory, or its repository on the Hub"
    local = subject.kind == "adapter" and not subject.base.hub
    return f"{here}{f'; `{subject.base.name}` for the base' if local else ''}."


def _auto(directory: Path | None) -> str:
    """The class of transformers that makes a checkpoint's model."""
    sees = directory and "vision_config" in _json(directory / "config.json")
    return "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"


def _companion(subject: _Subject) -> Iterator[str]:
    """The line that loads what makes a text tokens, if it is there."""
    directory = subject.target
    if any((directory / f"{name}processor_config.json").is_file() for name in ("", "pre")):
        yield f'processor = transformers.AutoProcessor.from_pretrained("{subject.name}")'
    elif any(directory.glob("tokenizer*")):
        yield f'tokenizer = transformers.AutoTokenizer.from_pretrained("{subject.name}")'


def _results(subject: _Subject, curve: str | None) -> list[str]:
    told, losses = [], dict(_losses(subject.workdir, "eval"))
    if subject.step in losses and 0 in losses:
        told.append(
            f"Held-out loss, a scored token: {losses[0]:.4f} before training, "
            f"**{losses[subject.step]:.4f}** after step {subject.step:,}."
        )
    if curve:
        told.append(f"![Loss by step]({curve})")
    return told + _answers(subject)


def _answers(subject: _Subject) -> list[str]:
    """What the latest evaluation found, if it was one of these weights."""
    found = _json(subject.workdir / "eval.json")
    tuned = found.get("tuned")
    asked = tuned and _asked(subject, tuned)
    if not asked:
        return []
    names = [name for name in ("base", "tuned") if name in found]
    less = found.get("tuned_less_base", {})
    rows = [
        [metric, *(_figure(found[name]["metrics"].get(metric)) for name in names)]
        + ([_figure(less.get(metric))] if less else [])
        for metric in tuned["metrics"]
    ]
    rows += [
        [what, *(_number(found[name].get(key)) for name in names), *([""] if less else [])]
        for what, key in (("held-out loss", "loss"), ("perplexity", "perplexity"))
    ]
    heads = ["", *names, *(["tuned less base"] if less else [])]
    told = f"{tuned['rows']:,} held-out rows answered{asked}, with 95% bootstrap intervals:"
    return [told, _table(heads, rows), *map(_public, found.get("remarks", ()))]


def _asked(subject: _Subject, tuned: Mapping[str, Any]) -> str | None:
    """By what an evaluation was answered, if it was this or what this was merged from."""
    about = subject.workdir / "eval" / Path(tuned["predictions"]).parent.name / "about.json"
    files = _json(about).get("tuned", ())
    weights = subject.workdir / "export" / Path(tuned["weights"]).name
    if _same(subject.target, files):
        return " by this"
    of_one_step = _report(weights).get("step") == subject.report.get("step")
    if subject.kind != "adapter" and of_one_step and _same(weights, files):
        return " by the adapter beside its base, before it was merged"
    return None


def _same(weights: Path, files: Sequence[Sequence[str]]) -> bool:
    """Whether weights are files of these names and hashes."""
    return bool(files) and all(
        _hash(weights if weights.is_file() else weights / name) == digest for name, digest in files
    )


def _hash(file: Path) -> str | None:
    with contextlib.suppress(OSError), file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
    return None


def _data(subject: _Subject) -> list[str]:
    data, held = subject.config.data, subject.config.eval
    lines = [f"- training: {_rows(subject, data.source, data.split, '.train.npz')}"]
    if held.source or held.split or held.holdout:
        source, split = held.source or data.source, held.split or data.split
        apart = ", set apart from these" if held.holdout else ""
        lines.append(f"- held out: {_rows(subject, source, split, '.eval.npz')}{apart}")
    return ["\n".join(lines)]


def _rows(subject: _Subject, source: Any, split: str, survey: str) -> str:
    """Where rows come from, and how many they are."""
    data, specs = subject.config.data, _listed(source)
    hub = any(map(_on_hub, specs))
    more = {"split": split, "subset": data.subset, "revision": data.revision} if hub else {}
    named = [_dataset(spec) for spec in specs]
    named += [f"{name} {_code(value)}" for name, value in more.items() if value]
    return ", ".join(named) + _counts(subject.workdir / survey)


def _counts(survey: Path) -> str:
    """What the run's one reading of all rows counted."""
    try:
        with np.load(survey, allow_pickle=False) as held:
            lengths, scored = (held[name].astype(np.int64) for name in ("lengths", "scored"))
    except (OSError, ValueError, KeyError):
        return ""
    share = scored.sum() / lengths.sum()
    return f"; {len(lengths):,} rows of {lengths.sum():,} tokens, {share:.0%} of them scored"


def _settings(config: Config) -> list[str]:
    """Those that are not the defaults and have a part in what came out."""
    values = {
        each.key: each.value for each in configs.SCHEMA.settings(configs.resolved(config), "")
    }
    given = [
        key
        for key in configs.SCHEMA.given(config, *configs.FIELDS)
        if key not in TOLD and not key.startswith(FREE)
    ]
    rows = [[_code(key), _code(_setting(key, values[key]))] for key in given]
    told = "What differs from the defaults; the whole is the run's `config.json`."
    return [told, _table(["setting", "value"], rows)] if rows else []


def _setting(key: str, value: Any) -> Any:
    return _file_name(value) if key in FILES and not _repository(value) else value


def _verified(subject: _Subject) -> list[str]:
    """What came of comparing what was written with what was in memory."""
    found = subject.report
    compared = {"loaded afresh": found.get("comparison"), OUTSIDE: found.get("reference")}
    for into, change in (found.get("merging") or {}).items():
        compared[MERGING.get(into, f"merging into the {into} weights")] = change
    rows = [[what, *_comparison(each)] for what, each in compared.items() if each]
    if not rows:
        return []
    asked = found["rows"]
    told = f"Once written, it was compared on {asked['count']:,} rows ({asked['from']}):"
    heads = ["", "logits, over their deviation", "KL, nats", "same likeliest token", "answers"]
    return [told, _table(heads, rows)]


def _comparison(found: Mapping[str, Any]) -> list[str]:
    """How far two models are apart, in a table's cells."""
    return [
        f"{found['logits']:.1e}" + (f" (up to {found['limit']:.0e})" if "limit" in found else ""),
        f"{found['kl']:.1e}",
        f"{found['agreement']:.2%} of {found['positions']:,}",
        f"{found['alike']} of {found['answers']} alike",
    ]


def _report(target: Path) -> dict[str, Any]:
    """What the export found, in a directory or beside a file."""
    beside = target.with_name(f"{target.stem}.{REPORT}")
    return _json(beside if target.suffix == ".npz" else target / REPORT)


def _run(subject: _Subject) -> list[str]:
    found, lines = subject.summary, []
    if found:
        early = ", stopped early" if found["stopped_early"] else ""
        lines += [
            f"{found['steps']:,} steps ({found['epochs']:.3g} epochs){early}: "
            f"{found['examples']:,} rows, {found['tokens']:,} tokens",
            f"{found['trained_parameters']:,} of {found['parameters']:,} parameters trained",
            f"{found['devices']}: {duration(found['seconds'])}, "
            f"{found['tokens_per_second']:,.0f} tokens a second, "
            f"{size_text(found['memory']['bytes'])} at most ({found['memory']['of']})",
        ]
    today = datetime.date.today().isoformat()
    lines.append(f"jaxtune {jaxtune.__version__}; begun {begun(subject.workdir)}, card of {today}")
    return ["\n".join(f"- {line}" for line in lines)]


def _curve(workdir: Path) -> str | None:
    """The losses of a run by step, as SVG."""
    named = (("training", "train"), ("held-out", "eval"))
    series = {name: _thinned(_losses(workdir, kind)) for name, kind in named}
    return plots.curves(series, title="Loss of a scored token") if any(series.values()) else None


def _losses(workdir: Path, kind: str) -> list[tuple[int, float]]:
    """Those of metrics.jsonl by step: of training (`train`), or held-out (`eval`)."""
    file = workdir / METRICS
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    # What follows the last newline may be half a line.
    lines = map(json.loads, text.split("\n")[:-1])
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == kind]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Few enough to draw: the means of as many neighbours as that takes."""
    size = -(-len(points) // MOST_DRAWN) or 1
    groups = (np.asarray(points[k : k + size]) for k in range(0, len(points), size))
    return [(float(steps), float(loss)) for steps, loss in (each.mean(0) for each in groups)]


# Names that may leave the machine.


def _repository(spec: str) -> re.Match | None:
    """What a Hub repository's id says; None for what is on this machine, as loading has it."""
    local = not spec or Path(spec).expanduser().exists() or spec.endswith(NO_REPO_SUFFIXES)
    return None if local else REPO_ID.fullmatch(spec)


def _on_hub(spec: str) -> bool:
    """Whether rows come from a dataset of the Hub."""
    path = Path(spec).expanduser()
    return not (path.suffix.lower() in READERS or path.exists()) and bool(HUB_NAME.fullmatch(spec))


def _listed(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _datasets(config: Config) -> list[str]:
    """Those of the Hub that a run read."""
    specs = [*_listed(config.data.source), *_listed(config.eval.source)]
    return [spec for spec in dict.fromkeys(specs) if _on_hub(spec)]


def _dataset(spec: str) -> str:
    if _on_hub(spec):
        return f"[{spec}](https://huggingface.co/datasets/{spec})"
    return _code(_file_name(spec))


def _file_name(spec: str) -> str:
    """A local path's last part."""
    return Path(os.path.abspath(os.path.expanduser(spec))).name


def _public(text: str) -> str:
    """Text whose paths are cut down to what they end in."""
    return PATH.sub(r"\1", text)


# Markdown, and what files say.


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _code(value: Any) -> str:
    """A value as code, fenced by more backticks than it has."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\n", "\\n")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in text or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None or figure["low"] is None:
        return "-"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _metadata(card: Path) -> dict[str, Any]:
    """The front matter of a card that anybody may have written."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # of the disk, of text and of YAML, which share no base
        return {}


def _json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): move it away, or make it anew") from None
