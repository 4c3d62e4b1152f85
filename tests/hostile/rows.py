"""Rows and files of every format, as `data.source` reads them."""

import json
import os
import shutil
from typing import Any

from hypothesis import strategies as st

from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent
from tests.hostile.strategies import ODD, apply, content_of, file_edits, junk, texts, wholes
from tests.hostile.world import World

FILES = ("table.jsonl", "table.json", "table.csv", "table.tsv", "table.parquet")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".ndjson", ".arrow", "", ".PNG")
FORMS = ("template", "typed", "messages", "totto", "price", "palette")
policies = st.fixed_dictionaries(
    {
        "bad_rows": st.sampled_from(["fail", "skip"]),
        "too_long": st.sampled_from(["fail", "skip", "cut_prefix", "cut_suffix"]),
        "form": st.one_of(st.just("template"), st.sampled_from(FORMS)),
    }
)
names = st.one_of(st.sampled_from(["prefix", "suffix", "messages", "text"]), texts)
message = st.one_of(
    junk,
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "model", 5]) | junk},
        optional={"content": texts | junk, "weight": junk, "tool_calls": junk, "name": junk},
    ),
)
words = st.text(min_size=1, max_size=20)
talk = st.tuples(words, words).map(
    lambda said: [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant"), said, strict=True)
    ]
)
sane = st.fixed_dictionaries({"prefix": words, "suffix": words, "messages": talk})
record = st.one_of(
    sane,
    sane,
    st.fixed_dictionaries(
        {"prefix": texts | junk, "suffix": texts | junk}, optional={"image": junk, "more": junk}
    ),
    st.fixed_dictionaries({"messages": st.lists(message, max_size=4) | junk}),
    st.fixed_dictionaries({"conversations": st.lists(message, max_size=3) | junk}),
    st.fixed_dictionaries({"instruction": junk, "input": junk, "output": junk}),
    st.dictionaries(names, junk, max_size=4),
    junk,
)
fields = st.one_of(
    texts, st.sampled_from(['"', '""', '"a', 'a"b', ",", ";", "\t", "a\nb", "x" * 200_000])
)

line = st.one_of(
    st.lists(words, min_size=2, max_size=2),
    st.lists(words | fields, min_size=2, max_size=2),
    st.lists(fields, min_size=1, max_size=4),
)


def probes(world: World) -> list[Probe]:
    """Returns the classes of rows and of files."""
    changed = st.sampled_from(FILES).flatmap(
        lambda name: st.tuples(st.just(name), file_edits((world.place / name).read_bytes()))
    )
    saved = [
        str(path.relative_to(world.place / "saved"))
        for path in sorted((world.place / "saved").rglob("*"))
        if path.is_file()
    ]
    parts = st.sampled_from(saved).flatmap(
        lambda name: st.tuples(
            st.just(name), file_edits((world.place / "saved" / name).read_bytes())
        )
    )
    return [
        Probe(
            "rows: JSON",
            6_000,
            st.tuples(st.lists(record, min_size=1, max_size=3), policies),
            of_json(world),
        ),
        Probe(
            "rows: delimited",
            2_500,
            st.tuples(
                st.lists(line, min_size=1, max_size=4),
                st.sampled_from([",.csv", ",.csv", "\t.tsv", ";.csv", "|.csv", "\t.csv", ",.tsv"]),
                st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]),
                policies,
            ),
            of_fields(world),
        ),
        Probe("files: edited", 5_000, st.tuples(changed, policies), of_changed(world)),
        Probe("files: saved datasets", 400, st.tuples(parts, policies), of_saved(world), chunk=50),
        Probe(
            "files: foreign",
            1_000,
            st.tuples(wholes, st.sampled_from(SUFFIXES), st.sampled_from(PLACES), policies),
            of_place(world),
            chunk=100,
        ),
    ]


def of_json(world: World):
    def check(value):
        records, policy = value
        lines = "".join(json.dumps(each) + "\n" for each in records)
        with world.scratch() as place:
            (place / "rows.jsonl").write_text(lines)
            used(world, place / "rows.jsonl", policy, len(records))

    return check


def of_fields(world: World):
    def check(value):
        table, (delimiter, *suffix), encoding, policy = value
        header = "prefix" + delimiter + "suffix\n"
        text = header + "".join(delimiter.join(row) + "\n" for row in table)
        with world.scratch() as place:
            file = place / f"rows{''.join(suffix)}"
            file.write_bytes(text.encode(encoding, "replace"))
            used(world, file, policy)

    return check


def of_changed(world: World):
    def check(value):
        (name, change), policy = value
        with world.scratch() as place:
            (place / name).write_bytes(apply((world.place / name).read_bytes(), change))
            used(world, place / name, policy)

    return check


def of_saved(world: World):
    def check(value):
        (name, change), policy = value
        with world.scratch() as place:
            shutil.copytree(world.place / "saved", place / "saved")
            file = place / "saved" / name
            file.write_bytes(apply(file.read_bytes(), change))
            used(world, place / "saved", policy)

    return check


# What stands where a file is expected.
PLACES = (
    *("file", "fifo", "directory", "empty directory", "loop", "dangling", "zero", "null", "socket"),
    *("missing", "glob", "glob of fifos", "long name", "odd name", "list"),
)


def of_place(world: World):
    def check(value):
        whole, suffix, kind, policy = value
        with world.scratch() as place:
            spec = _made(place, kind, content_of(whole), suffix)
            used(world, spec, policy)

    return check


def _made(place, kind: str, content: bytes, suffix: str) -> Any:
    """Makes what stands where the file is expected; returns the value of data.source."""
    import socket

    file = place / f"rows{suffix}"
    if kind in ("file", "list"):
        file.write_bytes(content)
        return [str(file), "", str(place)] if kind == "list" else file
    if kind == "fifo":
        os.mkfifo(file)
    elif kind in ("directory", "empty directory"):
        file.mkdir()
        if kind == "directory":
            (file / "state.json").write_bytes(content)
    elif kind in ("loop", "dangling", "zero", "null"):
        targets = {"loop": file, "dangling": place / "x", "zero": "/dev/zero", "null": "/dev/null"}
        file.symlink_to(targets[kind])
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(file))
    elif kind == "glob":
        (place / "b.jsonl").write_bytes(content)
        return f"{place}/**"
    elif kind == "glob of fifos":
        os.mkfifo(place / "b.jsonl")
        return f"{place}/*.jsonl"
    elif kind == "long name":
        return f"{place}/{'a' * 300}{suffix}"
    elif kind == "odd name":
        return str(place) + "/" + ODD[len(content) % len(ODD)] + suffix
    return file


def used(world: World, spec: Any, policy: dict, most: int | None = None) -> None:
    """Opens a source and surveys it, as a run does before its first step."""
    from jaxtune.data.sources import open_source
    from jaxtune.data.survey import survey

    encoder = encoder_of(world, policy["form"], policy["too_long"])
    source = open_source(spec)
    count = len(source)
    if count > 5_000:  # an edited Parquet file may claim any number
        return
    found = survey(source, encoder, malformed=policy["bad_rows"], workers=1)
    left_out = found.malformed.count + found.too_long.count
    if len(found.rows) + left_out != count or (most is not None and count > most):
        raise Silent(f"rows are lost: {len(found.rows)} used, {left_out} left out, {count} there")
    for row in found.rows.tolist()[:3]:
        example = encoder(source[row], source.place(row))
        if not example.scored.any() or len(example.tokens) > encoder.max_length:
            raise Silent(f"a row without scored tokens, or too long: {source.place(row)}")
        if example.tokens.min() < 0 or example.tokens.max() >= len(encoder.tokenizer):
            raise Silent(f"tokens outside the vocabulary: {source.place(row)}")


def encoder_of(world: World, form: str, too_long: str):
    """Returns an encoder of rows of one of `FORMS`, at most 200 tokens long."""
    from jaxtune import tasks
    from jaxtune.data.examples import Chat, RowEncoder, Template, Written

    if form == "template":
        made: Any = Template("{prefix}", "{suffix}")
    elif form == "typed":
        made = Template("{prefix:>8} {prefix!r}", "{suffix}")
    elif form == "messages":
        made = Chat("messages")
    else:
        task = tasks.find(form)
        made = Written(task.prefix, task.suffix)
    return RowEncoder(tokenizer_of(world), made, 200, too_long=too_long)


_open: dict = {}


def tokenizer_of(world: World):
    """Returns the tokenizer of the tiny base, opened once a process."""
    from jaxtune.data.tokenizer import Tokenizer

    if "gemma" not in _open:
        _open["gemma"] = Tokenizer.open(world.base, today="2026-11-05")
    return _open["gemma"]
