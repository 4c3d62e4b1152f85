"""Writes the sections of a model card as Markdown."""

import datetime
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxtune
from jaxtune.config.load import resolved
from jaxtune.config.schema import FIELDS, SCHEMA, Config
from jaxtune.data.sources import on_hub
from jaxtune.display.columns import size_text
from jaxtune.display.escapes import plural
from jaxtune.display.progress import duration
from jaxtune.export.card_facts import (
    EVALUATION,
    CardSubject,
    answered_by,
    held_out_values,
    listed,
    read_json,
    repository,
)
from jaxtune.export.markdown import (
    as_code,
    as_literal,
    figure_text,
    file_name,
    number_text,
    plain,
    public,
    table,
)
from jaxtune.workdir.directory import FREE, begun

TOLD = ("model.path", "data.source", "eval.source")  # shown in other sections
FILES = (
    "data.tokenizer",
    "data.chat_template",
    "data.image_root",
)  # settings that may hold local paths
OUTSIDE = "loaded in transformers (with PEFT for an adapter)"
MERGING = {"merged": "merging"}
VARIANTS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
MERGED = {
    "lora": "with adapters of rank {rank} merged in",
    "attention": "with its attention weights tuned",
    "full": "with all weights tuned",
    "rules": "with the weights selected by its rules tuned",
}


def body(subject: CardSubject, curve: str | None) -> str:
    """Returns the card below its front matter; `curve` is the file name of the loss plot."""
    sections = {
        "Loading": _loading(subject),
        "Results": _results(subject, curve),
        "Data": _data(subject),
        "Settings": _settings(subject.config),
        "Verification": _verified(subject),
        "Training run": _run(subject),
    }
    parts = [f"# {plain(subject.workdir.resolve().name)}", _summary(subject)]
    parts += [part for title, told in sections.items() if told for part in (f"## {title}", *told)]
    return "\n\n".join(parts) + "\n"


def _summary(subject: CardSubject) -> str:
    trainable = subject.config.trainable
    if subject.kind == "adapter":
        # An adapter with PiSSA init is written with twice the rank.
        written = read_json(subject.target / "adapter_config.json", {"r?": int})
        rank = written.get("r", trainable.rank)
        what = f"A {VARIANTS[trainable.variant]} adapter of rank {rank} for {subject.base.text}"
    else:
        how = MERGED[trainable.kind].format(rank=trainable.rank)
        what = f"{subject.base.text}, {how}"
    quant = subject.config.model.quant
    held = f" During training, the base was held in {_kinds(quant)}." if quant else ""
    return f"{what}, tuned with jaxtune.{held}"


def _kinds(quant: Any) -> str:
    """Returns the names of the quantised types in a `model.quant` setting."""
    named = [quant] if isinstance(quant, str) else [kind for _, kind in quant if kind]
    return " and ".join(dict.fromkeys(named))


def _loading(subject: CardSubject) -> list[str]:
    """Returns the code to load the export, for each library that can."""
    here, base = as_literal(subject.name), subject.base
    at = f", revision={as_literal(base.revision)}" if base.revision else ""
    full = as_literal(f"{base.name}@{base.revision}" if base.revision else base.name)
    quant = subject.config.model.quant
    few = f', quant="{quant}"' if isinstance(quant, str) else ""
    within = base.directory if subject.kind == "adapter" else subject.target
    auto = _auto(within)
    lines = {
        "adapter": {
            "PEFT": (
                "import peft, transformers",
                f"base = transformers.{auto}.from_pretrained({as_literal(base.name)}{at})",
                f"model = peft.PeftModel.from_pretrained(base, {here})",
                *_companion(subject),
            ),
            "jaxtune": (
                "import jaxtune",
                f"model, variables = jaxtune.load({full}{few})",
                f"variables = jaxtune.load_adapter(model, variables, {here})",
            ),
        },
        "merged": {
            "transformers": (
                "import transformers",
                f"model = transformers.{auto}.from_pretrained({here})",
                *_companion(subject),
            ),
            "jaxtune": ("import jaxtune", f"model, variables = jaxtune.load({here})"),
        },
        "npz": {"jaxtune": ("import jaxtune", f"model, variables = jaxtune.load({here})")},
    }[subject.kind]
    if within and within.is_file():
        lines.pop("PEFT", None)  # transformers reads no .npz
    told = [" ".join(filter(None, (_stands(subject), _tokenizer(subject))))]
    for library, code in lines.items():
        told += [f"With {library}:", "\n".join(["```python", *code, "```"])]
    return told


def _stands(subject: CardSubject) -> str:
    """Returns a sentence that explains the placeholder names in the loading code."""
    here = f"{as_code(subject.name)} stands for this "
    here += "file" if subject.kind == "npz" else "directory or its repository on the Hub"
    local = subject.kind == "adapter" and not subject.base.hub
    return f"{here}{f', and {as_code(subject.base.name)} for the base' if local else ''}."


def _auto(directory: Path | None) -> str:
    """Returns the name of the transformers class that loads a checkpoint."""
    sees = directory and "vision_config" in read_json(directory / "config.json")
    return "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"


def _companion(subject: CardSubject) -> Iterator[str]:
    """Yields the line that loads the processor or tokenizer, if the export has one."""
    directory, here = subject.target, as_literal(subject.name)
    if any((directory / f"{name}processor_config.json").is_file() for name in ("", "pre")):
        yield f"processor = transformers.AutoProcessor.from_pretrained({here})"
    elif any(directory.glob("tokenizer*")):
        yield f"tokenizer = transformers.AutoTokenizer.from_pretrained({here})"


def _tokenizer(subject: CardSubject) -> str:
    """Returns a sentence on the tokenizer files of the export, or "" if it has none."""
    names = subject.report.get("tokenizer", ())
    if not names:
        return ""
    told = f"It holds the tokenizer of the run ({', '.join(map(as_code, names))})"
    templated = any(name.startswith("chat_template") for name in names)
    return f"{told}, with the chat template that the run used." if templated else f"{told}."


def _results(subject: CardSubject, curve: str | None) -> list[str]:
    told = []
    for name, found in held_out_values(subject.workdir).items():
        per = "" if subject.config.objective else " per scored token"
        if subject.step in found and 0 in found:
            told.append(
                f"Held-out {plain(name)}{per}: {found[0]:.4f} before training, "
                f"**{found[subject.step]:.4f}** after step {subject.step:,}."
            )
    if curve:
        told.append(f"![Loss by step]({urllib.parse.quote(curve)})")
    return told + _answers(subject)


def _answers(subject: CardSubject) -> list[str]:
    """Returns the results of the latest evaluation, if it was of these weights."""
    found = read_json(subject.workdir / "eval.json", EVALUATION)
    tuned = found.get("tuned")
    asked = tuned and answered_by(subject, tuned)
    if not asked:
        return []
    names = [name for name in ("base", "tuned") if name in found]
    less = found.get("tuned_less_base", {})
    rows = [
        [plain(metric), *(figure_text(found[name]["metrics"].get(metric)) for name in names)]
        + ([figure_text(less.get(metric))] if less else [])
        for metric in tuned["metrics"]
    ]
    rows += [
        [what, *(number_text(found[name].get(key)) for name in names), *([""] if less else [])]
        for what, key in (("held-out loss", "loss"), ("perplexity", "perplexity"))
        if tuned.get(key) is not None
    ]
    rows += [
        [plain(f"held-out {metric}")]
        + [number_text(found[name].get("objective", {}).get(metric)) for name in names]
        + ([""] if less else [])
        for metric in tuned.get("objective", ())
    ]
    heads = ["", *names, *(["tuned - base"] if less else [])]
    told = f"{tuned['rows']:,} held-out rows, answered{asked}, with 95% bootstrap intervals:"
    remarks = (plain(public(each)) for each in found.get("remarks", ()))
    return [told, table(heads, rows), *remarks]


def _data(subject: CardSubject) -> list[str]:
    data, held = subject.config.data, subject.config.eval
    lines = [f"- training: {_rows(subject, data.source, data.split, '.train.npz')}"]
    if held.source or held.split or held.holdout:
        source, split = held.source or data.source, held.split or data.split
        apart = "; split off from the training rows" if held.holdout else ""
        lines.append(f"- held-out: {_rows(subject, source, split, '.eval.npz')}{apart}")
    return ["\n".join(lines)]


def _rows(subject: CardSubject, source: Any, split: str, survey: str) -> str:
    """Describes the source of rows and, if the run's survey is there, their number."""
    data, specs = subject.config.data, listed(source)
    hub = any(map(on_hub, specs))
    more = {"split": split, "subset": data.subset, "revision": data.revision} if hub else {}
    named = [_dataset(spec) for spec in specs]
    named += [f"{name} {as_code(value)}" for name, value in more.items() if value]
    return ", ".join(named) + _counts(subject.workdir / survey)


def _counts(survey: Path) -> str:
    """Returns the counts in a survey file as text, or "" if it cannot be read."""
    try:
        with np.load(survey, allow_pickle=False) as held:
            lengths, scored = (held[name].astype(np.int64) for name in ("lengths", "scored"))
        share = scored.sum() / max(1, lengths.sum())
    except Exception:  # damaged archives raise errors of many kinds, which share no base class
        return ""
    told = f"{plural(len(lengths), 'row')} with {plural(int(lengths.sum()), 'token')}"
    return f"; {told}, {share:.0%} of them scored"


def _settings(config: Config) -> list[str]:
    """Returns a table of the settings that differ from their defaults and affect the result."""
    values = {each.key: each.value for each in SCHEMA.settings(resolved(config), "")}
    given = [
        key for key in SCHEMA.given(config, *FIELDS) if key not in TOLD and not key.startswith(FREE)
    ]
    rows = [[as_code(key), as_code(_setting(key, values[key]))] for key in given]
    told = "Settings that differ from the defaults; the run's `config.json` has all of them."
    return [told, table(["setting", "value"], rows)] if rows else []


def _setting(key: str, value: Any) -> Any:
    return file_name(value) if key in FILES and not repository(value) else value


def _verified(subject: CardSubject) -> list[str]:
    """Returns a table of the comparisons between the written files and the model in memory."""
    found = subject.report
    compared = {"reloaded from disk": found.get("comparison"), OUTSIDE: found.get("reference")}
    for into, change in (found.get("merging") or {}).items():
        compared[MERGING.get(into, f"merging into the {plain(into)} weights")] = change
    rows = [[what, *_comparison(each)] for what, each in compared.items() if each]
    notes = [f"**Warning:** {plain(each)}." for each in found.get("warnings", ())]
    if same := found.get("same"):
        notes = [_same(same), *notes]
    if not rows or "rows" not in found:
        return notes
    asked = found["rows"]
    told = "The written files were compared with the model in memory on "
    told += f"{plural(asked['count'], 'row')} ({plain(asked['from'])}):"
    heads = [
        "",
        "logits (standard deviations)",
        "KL (nats)",
        "same most likely token",
        "identical answers",
    ]
    return [told, table(heads, rows), *notes]


def _same(found: Mapping[str, Any]) -> str:
    return (
        f"The written files were loaded, and their {plural(found['arrays'], 'array')} compared: "
        "they equal those of the model in memory."
    )


def _comparison(found: Mapping[str, Any]) -> list[str]:
    """Formats a comparison of two models as table cells."""
    return [
        f"{found['logits']:.1e}" + (f" (limit {found['limit']:.0e})" if "limit" in found else ""),
        f"{found['kl']:.1e}",
        f"{found['agreement']:.2%} of {found['positions']:,}",
        f"{found['alike']} of {found['answers']}",
    ]


def _run(subject: CardSubject) -> list[str]:
    found, lines = subject.summary, []
    if found:
        early = ", stopped early" if found["stopped_early"] else ""
        lines += [
            f"{plural(found['steps'], 'step')} ({plural(found['epochs'], 'epoch', '.3g')}){early}: "
            f"{plural(found['examples'], 'row')}, {plural(found['tokens'], 'token')}",
            f"{found['trained_parameters']:,} of {found['parameters']:,} parameters trained",
            f"{plain(found['devices'])}: {duration(found['seconds'])}, "
            f"{found['tokens_per_second']:,.0f} tokens/s, "
            f"peak memory {size_text(found['memory']['bytes'])} ({plain(found['memory']['of'])})",
        ]
    today = datetime.date.today().isoformat()
    started = plain(str(begun(subject.workdir)))
    lines.append(f"jaxtune {jaxtune.__version__}; run started {started}, card written {today}")
    return ["\n".join(f"- {line}" for line in lines)]


def _dataset(spec: str) -> str:
    if on_hub(spec):
        return f"[{plain(spec)}](https://huggingface.co/datasets/{spec})"
    return as_code(file_name(spec))
