"""A model card beside what was exported: of what, on which rows, what came of it, how to load it.

It is Markdown under the front matter that the Hub reads. It tells what the run left in its workdir,
without what is missing there, and names local files without their folders.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import get_args

from jaxtune.config.schema import Config
from jaxtune.export.card_facts import (
    CURVE,
    README,
    CardBase,
    CardSubject,
    Kind,
    datasets,
    loss_curve,
)
from jaxtune.export.card_sections import body
from jaxtune.files import write_text

# A card that was edited has another digest than its mark says, and is its editor's.
MARK = re.compile(r"---\n# jaxtune ([0-9a-f]{16}): [^\n]*\n")
MARKED = "---\n# jaxtune {}: an edited card is left as it is\n"
SECRET = re.compile(r"\b(hf_)[A-Za-z0-9]{20,}")  # a token of the Hub, wherever it came from


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
    file = card_file(target)
    known = CardBase.of(config.model.path, base)
    subject = CardSubject(target, name or target.name, Path(workdir), config, kind, known)
    if edited(file) or subject.report.get("adapter"):
        return None
    drawing = file.with_suffix(".svg").name if kind == "npz" else CURVE
    if curve := loss_curve(subject.workdir):
        write_text(file.with_name(drawing), curve)
    content = f"{_front(subject)}---\n\n{body(subject, drawing if curve else None)}"
    content = SECRET.sub(r"\1…", content)
    write_text(file, MARKED.format(_digest(content)) + content)
    return file


def card_file(target: Path) -> Path:
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
    mine, yours = card_file(Path(old).expanduser()), card_file(Path(new).expanduser())
    if mine.name != README or not edited(mine):  # that of a file lies beside it, and stays
        return False
    shutil.copyfile(mine, yours)
    return True


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _front(subject: CardSubject) -> str:
    """The front matter's fields; none is there that is not known."""
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
