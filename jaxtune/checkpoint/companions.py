"""Tokenizer files that travel with exported weights, so that transformers can open them there."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.checkpoint.hub import GENERATION_CONFIG, PROCESSOR_FILES, TOKENIZER_FILES
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.data.vocabulary import ROLES

SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
STANDARD = ("tokenizer.json", "tokenizer.model")  # vocabularies that transformers looks for


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer to copy, and files to write beside them, by their names."""

    copied: Mapping[str, Path]
    written: Mapping[str, str]
    generation: Path | None = None  # the tokenizer's generation_config.json, for whole models

    @classmethod
    def of(cls, place: Path, tokenizer: Tokenizer, base: Path) -> "TokenizerFiles":
        """Collects the files of a tokenizer, and what they lack of how it was used.

        Args:
          place: Directory of the tokenizer, or its file.
          tokenizer: The tokenizer that was opened from there, with the chat template in use.
          base: Checkpoint of the base, a directory or an .npz file. Its processor files, if it
            takes pictures, are carried too.

        Returns:
          The files.
        """
        copied = dict(_tokenizer_files(place))
        copied |= {file.name: file for file in matching(base, PROCESSOR_FILES)}
        settings = _settings(copied)
        written = {}
        template = tokenizer.chat_template
        if template and template != _stated(copied, settings):
            written[TEMPLATE] = template
            stale = {name for name in copied if name.startswith("chat_template")}
            copied = {name: file for name, file in copied.items() if name not in stale}
        if SETTINGS not in copied:
            described = _described(tokenizer, sentencepiece=STANDARD[0] not in copied)
            written[SETTINGS] = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        generation = place / GENERATION_CONFIG
        return cls(copied, written, generation if generation.is_file() else None)

    @property
    def names(self) -> list[str]:
        """Names of the files, without generation_config.json."""
        return sorted({*self.copied, *self.written})

    def write(self, directory: Path, *, whole: bool) -> None:
        """Writes the files into a directory; with `whole`, generation_config.json too."""
        for name, file in self.copied.items():
            shutil.copyfile(file, directory / name)
        for name, text in self.written.items():
            (directory / name).write_text(text, encoding="utf-8")
        if whole and self.generation:
            shutil.copyfile(self.generation, directory / GENERATION_CONFIG)


def matching(directory: Path, patterns: Iterable[str]) -> list[Path]:
    """Returns the files directly in a directory whose names match one of some patterns."""
    found = {file for pattern in patterns for file in directory.glob(pattern) if file.is_file()}
    return sorted(found)


def _tokenizer_files(place: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a tokenizer with the names under which transformers looks for them."""
    if place.is_file() and place.name not in STANDARD:  # the settings beside it are another's
        yield f"tokenizer{place.suffix}", place
        return
    folder = place.parent if place.is_file() else place
    found = {file.name: file for file in matching(folder, TOKENIZER_FILES)}
    vocabularies = [name for name in STANDARD if name in found]
    models = [name for name in found if name.endswith(".model")]
    if place.is_file():  # transformers would prefer tokenizer.json to a .model
        other = {*STANDARD, *models} - {place.name}
    elif not vocabularies and models:
        yield STANDARD[1], found[models[0]]
        other = {models[0]}
    else:
        other = set()
    yield from ((name, file) for name, file in found.items() if name not in other)


def _settings(files: Mapping[str, Path]) -> Mapping[str, Any]:
    """Returns the content of tokenizer_config.json; {} if it is missing or damaged."""
    try:
        found = json.loads(files[SETTINGS].read_bytes()) if SETTINGS in files else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _stated(files: Mapping[str, Path], settings: Mapping[str, Any]) -> Any:
    """Returns the chat template that transformers' tokenizer takes from these files."""
    if TEMPLATE in files:
        return files[TEMPLATE].read_text(encoding="utf-8")
    return settings.get("chat_template")


def _described(tokenizer: Tokenizer, sentencepiece: bool) -> dict[str, Any]:
    """Returns a tokenizer_config.json for a tokenizer that came without one.

    Without it, transformers guesses the class and the special tokens by the family of the model,
    which the directory of an adapter does not state.
    """
    numbers = {role: getattr(tokenizer, role) for role in ROLES}
    special = {
        f"{role}_token": tokenizer.piece(number)
        for role, number in numbers.items()
        if number is not None
    }
    if not sentencepiece:  # tokenizer.json states all else
        return {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    # Of transformers' general classes, only Llama's puts a space before a text.
    spaced = tokenizer.encode("a") != tokenizer.encode("a", continues=True)
    kind = "LlamaTokenizer" if spaced else "PreTrainedTokenizerFast"
    return {"tokenizer_class": kind, "add_bos_token": tokenizer.adds_bos, **special}
