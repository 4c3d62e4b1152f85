"""Reads facts of a tokenizer from its files, without loading it: tokens, roles, problems."""

import contextlib
import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtune.data.errors import DataError

ROLES = ("bos", "eos", "pad", "unk")
SETTINGS = ("tokenizer_config.json", "generation_config.json")
FEW = 4  # tokens past the embedding's rows that are listed
# A tokenizer file of any other name ignores the settings beside it.
STANDARD = ("tokenizer.json", "tokenizer.model")


def tokenizer_facts(path: Path, raw: Mapping, rows: int) -> dict[str, Any]:
    """Returns the facts that a checkpoint's small files state about its tokenizer.

    Args:
      path: Directory, or one tokenizer file; the settings beside a file apply to it if it has a
        standard name.
      raw: Parsed `config.json`.
      rows: Rows of the embedding.

    Returns:
      The facts by name; None where no file states one, and problems under "problems".
    """
    files = _Files(path)
    settings = files.json("tokenizer_config.json")
    vocabulary = _vocabulary(files, settings)
    config = _flat(raw)
    named = {**files.json("special_tokens_map.json"), **settings}
    special = {role: _special(role, named, config, vocabulary, files) for role in ROLES}
    past = [vocabulary.entry(number) for number in sorted(vocabulary.tokens) if number >= rows]
    return {
        "file": vocabulary.file,
        "kind": vocabulary.kind,
        "tokens": len(vocabulary.tokens),
        "embedding_rows": rows,
        "past_the_rows": len(past),
        "first_past_the_rows": past[:FEW],
        "special": special,
        "stops": [vocabulary.entry(number) for number in _stops(files, config)],
        "adds_bos": _adds_bos(files, settings, vocabulary, special["bos"]),
        "chat_template": _has_template(files, settings),
        "missing": [name for name in SETTINGS if not files.has(name)],
        "problems": files.problems,
    }


def stop_ids(directory: Path) -> tuple[int, ...]:
    """Returns the ids that end a text by generation_config.json, or else by config.json.

    Raises:
      DataError: If one of these files is damaged.
    """
    files = _Files(directory)
    found = _stops(files, _flat(files.json("config.json")))
    if files.problems:
        raise DataError(f"{directory}: {files.problems[0]}; download the file again")
    return found


class _Files:
    """Small files of a checkpoint; a damaged one becomes a noted problem instead of an error."""

    def __init__(self, path: Path):
        self.chosen = None if path.is_dir() else path.name
        self.directory = path if path.is_dir() else path.parent
        self.problems: list[str] = []

    def has(self, name: str) -> bool:
        """Returns whether a file exists and applies to this tokenizer."""
        alone = self.chosen is not None and self.chosen not in STANDARD
        return (name == self.chosen or not alone) and (self.directory / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """Returns a file's JSON object; {} if the file is missing or damaged."""
        if not self.has(name):
            return {}
        with self.noted(name), _uncollected():
            parsed = json.loads((self.directory / name).read_bytes())
            if not isinstance(parsed, dict):
                raise TypeError(f"expected a JSON object, found a {type(parsed).__name__}")
            return parsed
        return {}

    @contextlib.contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Turns errors of reading a damaged file into noted problems."""
        try:
            yield
        except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            self.problems.append(f"{name} cannot be read: {type(error).__name__}: {error}")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector.

    With it, parsing the half a million merges of Gemma's tokenizer takes four times as long.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass
class _Vocabulary:
    """Tokens of one tokenizer file, with its other settings."""

    file: str | None = None
    kind: str | None = None
    ids: dict[str, int] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)  # token by role
    processor: Mapping | None = None  # post_processor; None for other files than tokenizer.json

    @cached_property
    def tokens(self) -> dict[int, str]:
        return {number: token for token, number in self.ids.items()}

    def entry(self, number: int) -> dict[str, Any]:
        return {"token": self.tokens.get(number), "id": number}


def _vocabulary(files: _Files, settings: Mapping) -> _Vocabulary:
    """Returns the tokens of tokenizer.json or a .model, with those that other files add."""
    json_first = files.chosen is None or files.chosen.endswith(".json")
    found = (_tokenizer_json(files) if json_first else None) or _sentencepiece(files)
    if found is None or not found.ids:
        files.problems.append(
            "no tokenizer: expected tokenizer.json or a SentencePiece .model beside config.json"
        )
        return _Vocabulary()
    with files.noted("added_tokens.json"):
        found.ids |= _numbered(files.json("added_tokens.json"))
    with files.noted("tokenizer_config.json"):
        added = settings.get("added_tokens_decoder") or {}
        found.ids |= _numbered({entry["content"]: number for number, entry in added.items()})
    return found


def _tokenizer_json(files: _Files) -> _Vocabulary | None:
    name = files.chosen or "tokenizer.json"
    parsed = files.json(name)
    if not parsed:
        return None
    with files.noted(name):
        model = parsed["model"]
        tokens = model["vocab"]
        if not isinstance(tokens, Mapping):  # Unigram lists (piece, score) in the order of ids
            tokens = {piece: number for number, (piece, _) in enumerate(tokens)}
        added = {entry["content"]: entry["id"] for entry in parsed.get("added_tokens") or ()}
        special = {"unk": model["unk_token"]} if model.get("unk_token") else {}
        return _Vocabulary(
            file=name,
            kind=model.get("type") or "unspecified type",
            ids=_numbered({**tokens, **added}),
            special=special,
            processor=parsed.get("post_processor") or {},
        )


def _sentencepiece(files: _Files) -> _Vocabulary | None:
    found = sorted(files.directory.glob("*.model"), key=lambda file: file.name != "tokenizer.model")
    if files.chosen:
        found = [files.directory / files.chosen]
    if not found:
        return None
    from sentencepiece import SentencePieceProcessor

    with files.noted(found[0].name):
        model = SentencePieceProcessor(model_proto=found[0].read_bytes())
        pieces = model.id_to_piece(list(range(model.vocab_size())))
        numbers = {role: getattr(model, f"{role}_id")() for role in ROLES}
        special = {role: pieces[number] for role, number in numbers.items() if number >= 0}
        ids = {piece: number for number, piece in enumerate(pieces)}
        return _Vocabulary(found[0].name, "SentencePiece", ids, special)


def _numbered(tokens: Mapping) -> dict[str, int]:
    return {str(token): int(number) for token, number in tokens.items()}


def _special(
    role: str, named: Mapping, config: Mapping, vocabulary: _Vocabulary, files: _Files
) -> dict[str, Any] | None:
    """Returns the token of a role and its id; null in the tokenizer's files means there is none."""
    if f"{role}_token" in named:
        token = named[f"{role}_token"]
        token = token.get("content") if isinstance(token, Mapping) else token
    elif role in vocabulary.special:
        token = vocabulary.special[role]
    else:
        number = config.get(f"{role}_token_id")
        return vocabulary.entry(number) if type(number) is int else None
    if not token or not isinstance(token, str):
        return None
    if vocabulary.ids and token not in vocabulary.ids:
        files.problems.append(f"the {role} token {token!r} is not in the vocabulary")
    return {"token": token, "id": vocabulary.ids.get(token)}


def _stops(files: _Files, config: Mapping) -> tuple[int, ...]:
    """Returns the ids of generation_config.json, or else of the config, that end a text."""
    generation = files.json("generation_config.json").get("eos_token_id")
    found = config.get("eos_token_id") if generation is None else generation
    numbers = found if isinstance(found, list) else [found]
    return tuple(number for number in numbers if type(number) is int)


def _flat(raw: Mapping) -> dict[str, Any]:
    """Returns `config.json` with the fields of its text model beside its own."""
    return {**(raw.get("text_config") or {}), **raw}


def _adds_bos(
    files: _Files, settings: Mapping, vocabulary: _Vocabulary, bos: Mapping | None
) -> bool | None:
    """Returns whether BOS is put before a text, or None if no file states it."""
    declared = settings.get("add_bos_token")
    declared = declared if isinstance(declared, bool) else None
    if vocabulary.processor is None:
        return declared
    found = False
    with files.noted("tokenizer.json"):
        steps = vocabulary.processor.get("processors") or [vocabulary.processor]
        starts = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing"]
        tokens = [start["SpecialToken"]["id"] for start in starts if "SpecialToken" in start]
        found = bos is not None and bos["token"] in tokens
    if declared not in (None, found):
        files.problems.append(
            f"add_bos_token is {json.dumps(declared)} in tokenizer_config.json, but the "
            "post_processor of tokenizer.json takes precedence, as in transformers, and does the "
            "opposite"
        )
    return found


def _has_template(files: _Files, settings: Mapping) -> bool:
    written = (files.has(f"chat_template.{suffix}") for suffix in ("jinja", "json"))
    return bool(settings.get("chat_template")) or any(written)
