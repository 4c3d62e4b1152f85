"""Reads facts of a tokenizer from its files, without loading it: tokens, roles, problems."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtune.data.side_files import IDS, SideFiles, Unusable

ROLES = ("bos", "eos", "pad", "unk")
SETTINGS = ("tokenizer_config.json", "generation_config.json")
FEW = 4  # tokens past the embedding's rows that are listed


def tokenizer_facts(files: SideFiles, raw: Mapping, rows: int) -> dict[str, Any]:
    """Returns the facts that a checkpoint's small files state about its tokenizer.

    Args:
      files: The files; if they are not strict, those that are damaged are among the problems.
      raw: Parsed `config.json`.
      rows: Rows of the embedding.

    Returns:
      The facts by name; None where no file states one, and problems under "problems".
    """
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
    files = SideFiles(directory, strict=True)
    return _stops(files, _flat(files.json("config.json")))


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


def _vocabulary(files: SideFiles, settings: Mapping) -> _Vocabulary:
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


def _tokenizer_json(files: SideFiles) -> _Vocabulary | None:
    name = files.chosen or "tokenizer.json"
    parsed = files.json(name)
    if not files.has(name) or name in files.damaged:
        return None
    with files.noted(name):
        model = parsed.get("model")
        if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping | list):
            raise Unusable("expected a model with a vocabulary")
        _check_merges(model)
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


def _check_merges(model: Mapping) -> None:
    """Raises Unusable for merges on which the `tokenizers` package would abort the process."""
    prefix = model.get("continuing_subword_prefix")
    for merge in model.get("merges") or () if prefix else ():
        second = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):
            raise Unusable(f"a merge ends in {second!r}, which does not begin with {prefix!r}")


def _sentencepiece(files: SideFiles) -> _Vocabulary | None:
    found = sorted(files.directory.glob("*.model"), key=lambda file: file.name != "tokenizer.model")
    if files.chosen:
        found = [files.directory / files.chosen]
    if not found:
        return None
    from sentencepiece import SentencePieceProcessor

    with files.noted(found[0].name):
        model = SentencePieceProcessor(model_proto=files.read(found[0].name))
        pieces = model.id_to_piece(list(range(model.vocab_size())))
        numbers = {role: getattr(model, f"{role}_id")() for role in ROLES}
        special = {role: pieces[number] for role, number in numbers.items() if number >= 0}
        ids = {piece: number for number, piece in enumerate(pieces)}
        return _Vocabulary(found[0].name, "SentencePiece", ids, special)


def _numbered(tokens: Mapping) -> dict[str, int]:
    found = {str(token): int(number) for token, number in tokens.items()}
    if found and not 0 <= min(found.values()) <= max(found.values()) < IDS:
        raise Unusable(f"it has token ids outside 0 to {IDS - 1:,}")
    return found


def _special(
    role: str, named: Mapping, config: Mapping, vocabulary: _Vocabulary, files: SideFiles
) -> dict[str, Any] | None:
    """Returns the token of a role and its id; null in the tokenizer's files means there is none."""
    if f"{role}_token" in named:
        token = named[f"{role}_token"]
        token = token.get("content") if isinstance(token, Mapping) else token
    elif role in vocabulary.special:
        token = vocabulary.special[role]
    else:
        number = config.get(f"{role}_token_id")
        return vocabulary.entry(number) if type(number) is int and number >= 0 else None
    if not token or not isinstance(token, str):
        return None
    if vocabulary.ids and token not in vocabulary.ids:
        files.problems.append(f"the {role} token {token!r} is not in the vocabulary")
    return {"token": token, "id": vocabulary.ids.get(token)}


def _stops(files: SideFiles, config: Mapping) -> tuple[int, ...]:
    """Returns the ids of generation_config.json, or else of the config, that end a text."""
    generation = files.json("generation_config.json").get("eos_token_id")
    found = config.get("eos_token_id") if generation is None else generation
    numbers = found if isinstance(found, list) else [found]
    return tuple(number for number in numbers if type(number) is int and number >= 0)


def _flat(raw: Mapping) -> dict[str, Any]:
    """Returns `config.json` with the fields of its text model beside its own."""
    return {**(raw.get("text_config") or {}), **raw}


def _adds_bos(
    files: SideFiles, settings: Mapping, vocabulary: _Vocabulary, bos: Mapping | None
) -> bool | None:
    """Returns whether BOS is put before a text, or None if no file states it."""
    declared = settings.get("add_bos_token")
    declared = declared if isinstance(declared, bool) else None
    if vocabulary.processor is None:
        return declared
    found = False
    with files.noted(vocabulary.file or ""):
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


def _has_template(files: SideFiles, settings: Mapping) -> bool:
    written = (files.has(f"chat_template.{suffix}") for suffix in ("jinja", "json"))
    return bool(settings.get("chat_template")) or any(written)
