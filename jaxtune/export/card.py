"""Model cards of exports: the base, the data, the results, and how to load the weights.

A card is Markdown with the front matter that the Hub reads. It is made from the files that the run
left in its workdir, leaves out what is missing there, and names local files without their folders.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import get_args

from jaxtune.config.schema import Config
from jaxtune.display.errors import UserError
from jaxtune.export.card_facts import (
    CURVE,
    README,
    CardBase,
    CardSubject,
    Kind,
    curves_of,
    datasets,
)
from jaxtune.export.card_sections import body
from jaxtune.files import write_text

# The mark holds a digest of the card. If they do not match, the card was edited; it is then kept.
MARK = re.compile(r"---\n# jaxtune ([0-9a-f]{16}): [^\n]*\n")
MARKED = "---\n# jaxtune {}: if you edit this card, jaxtune no longer replaces it\n"
SECRET = re.compile(r"\b(hf_)[A-Za-z0-9]{20,}")  # a Hub token in any text of the card


def write(
    directory: str | os.PathLike,
    workdir: Path,
    config: Config,
    *,
    kind: Kind,
    base: Path | None = None,
    name: str | None = None,
) -> Path | None:
    """Writes the card of an export: into its directory, or beside its .npz file.

    Existing cards that were edited are left alone, and an adapter that is not from the run gets no
    card. With several processes, only one of them may call this.

    Args:
      directory: The exported directory, or the .npz file.
      workdir: Directory of the run.
      config: Config of the run.
      kind: What was exported: "adapter", "merged" or "npz".
      base: Path of the base on this machine; if None, it is looked up without downloading.
      name: Name of the export in the card. By default it is that of `directory`.

    Returns:
      The path of the card, or None if none was written.
    """
    if kind not in get_args(Kind):
        raise UserError(f"kind {kind!r}: expected one of {', '.join(get_args(Kind))}")
    target = Path(directory).expanduser()
    file = card_file(target)
    known = CardBase.of(config.model.path, base)
    subject = CardSubject(target, name or target.name, Path(workdir), config, kind, known)
    if edited(file) or subject.report.get("adapter"):
        return None
    drawing = file.with_suffix(".svg").name if kind == "npz" else CURVE
    if curve := curves_of(subject.workdir, config.objective):
        write_text(file.with_name(drawing), curve)
    content = f"{_front(subject)}---\n\n{body(subject, drawing if curve else None)}"
    content = SECRET.sub(r"\1…", content)
    write_text(file, MARKED.format(_digest(content)) + content)
    return file


def card_file(target: Path) -> Path:
    """Returns the path of the card: in an exported directory, or beside an exported .npz file."""
    return target.with_suffix(".md") if target.suffix == ".npz" else target / README


def edited(file: Path) -> bool:
    """Returns whether a card exists that was edited, or was not written by `write`."""
    if not file.exists():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    mark = MARK.match(text)
    return mark is None or mark[1] != _digest(text[mark.end() :])


def carry(old: str | os.PathLike, new: str | os.PathLike) -> bool:
    """Copies an edited card, and the plot that it shows, to the directory that replaces its own.

    Returns whether there was one.
    """
    mine, yours = card_file(Path(old).expanduser()), card_file(Path(new).expanduser())
    if mine.name != README or not edited(mine):  # an .npz file's card is not replaced
        return False
    for file in (mine, mine.with_name(CURVE)):
        if file.is_file():
            shutil.copyfile(file, yours.with_name(file.name))
    return True


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _front(subject: CardSubject) -> str:
    """Returns the front matter as YAML, without the fields whose values are unknown."""
    from huggingface_hub import ModelCardData

    config = subject.config
    variant = config.trainable.variant
    tuned = ["lora", variant] if config.trainable.kind == "lora" else []
    tags = dict.fromkeys(filter(None, ["jaxtune", *tuned, config.data.task]))
    found = ModelCardData(
        base_model=subject.base.name if subject.base.hub else None,
        library_name={"adapter": "peft", "merged": "transformers"}.get(subject.kind),
        datasets=datasets(config) or None,
        tags=list(tags),
        **subject.base.licence,
    )
    return found.to_yaml() + "\n"
