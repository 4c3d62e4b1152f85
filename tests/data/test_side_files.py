"""Damaged files of a tokenizer are refused by name; none counts as missing."""

import json
import os
import random
import shutil

import pytest

from jaxtune.data.errors import DataError
from jaxtune.data.side_files import SideFiles
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.data.vocabulary import stop_ids, tokenizer_facts
from tests.data import made

SIDE = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.json",
]


@pytest.fixture
def directory(checkpoint, tmp_path):
    """`directory("gemma")` is a copy of such a tokenizer's files, to damage."""
    return lambda kind: shutil.copytree(checkpoint(kind), tmp_path / kind)


@pytest.mark.parametrize("kind", ["gemma", "sentencepiece_gemma"])
@pytest.mark.parametrize("content", ["", "[]", "null", '{"a": ', "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", [*SIDE, "tokenizer.json"])
def test_a_damaged_file_is_refused_by_name(directory, kind, name, content):
    folder = directory(kind)
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=rf"{kind}: {name} cannot be read: .*; download the file"):
        Tokenizer.open(folder)


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("tokenizer_config.json", {"bos_token": {"a": 1}}, "'bos_token' is {\"a\": 1}; expected a"),
        ("tokenizer_config.json", {"eos_token": ["<eos>"]}, "'eos_token' is"),
        ("tokenizer_config.json", {"pad_token": 3}, "'pad_token' is 3"),
        ("tokenizer_config.json", {"unk_token": "\ud800"}, "'unk_token' is"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "expected true, false or null"),
        ("tokenizer_config.json", {"chat_template": 3}, "'chat_template' is 3"),
        ("tokenizer_config.json", {"chat_template": ["x"]}, "a list of objects with a name"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "'added_tokens_decoder' is"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "a"}}, "an object of token ids"),
        ("special_tokens_map.json", {"bos_token": 7}, "'bos_token' is 7"),
        ("added_tokens.json", {"<x>": "a"}, "'<x>' is \"a\"; expected a token id"),
        ("generation_config.json", {"eos_token_id": "1"}, "a list of ids"),
        ("generation_config.json", {"eos_token_id": [1, 2**40]}, "a list of ids"),
        ("config.json", {"text_config": []}, "'text_config' is"),
        ("chat_template.json", {"chat_template": {"default": 1}}, "'chat_template' is"),
        ("tokenizer.json", {}, "expected a model with a vocabulary"),
        ("tokenizer.json", {"model": {"vocab": {"a": 2**31}}}, "token ids outside 0 to"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": 3}}, "download the file"),
    ],
)
def test_values_of_another_kind_are_refused(directory, name, content, problem):
    folder = directory("gemma")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=name) as found:
        Tokenizer.open(folder)
    assert problem in str(found.value)


def test_a_template_that_is_no_text(directory):
    folder = directory("gemma")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja cannot be read: it is not UTF-8"):
        Tokenizer.open(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_what_is_no_regular_file_is_refused_without_waiting(directory, name):
    folder = directory("gemma")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=f"{name} cannot be read: expected a regular file"):
        Tokenizer.open(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{name} cannot be read: No such file"):
        Tokenizer.open(folder)
    with pytest.raises(DataError, match=r"null cannot be read: expected a regular file"):
        Tokenizer.open("/dev/null")


def test_merges_that_would_abort_the_process(directory):
    folder = directory("gemma")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "##"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a merge ends in .*, which does not begin with '##'"):
        Tokenizer.open(folder)


def test_reports_note_all_damage_and_go_on(directory):
    folder = directory("gemma")
    (folder / "tokenizer_config.json").write_text('{"bos_token": 3, "eos_token": "<eos>"}')
    (folder / "generation_config.json").write_text("[")
    facts = tokenizer_facts(SideFiles(folder, strict=False), {}, 2**20)
    first, second = facts["problems"]
    assert first.startswith("tokenizer_config.json cannot be read: 'bos_token' is 3")
    assert second.startswith("generation_config.json cannot be read: it is not valid JSON")
    assert facts["special"]["eos"]["token"] == "<eos>" and facts["special"]["bos"] is None
    with pytest.raises(DataError, match=r"generation_config\.json"):
        stop_ids(folder)


VALUES = [None, True, 7, -1, 2**40, 1.5, "", "x", "\ud800", [], ["a"], [None], {}, {"content": 3}]


def places(value, at=()):
    """The paths to some of the values within a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, each in list(inner)[:30]:
        yield (*at, key)
        yield from places(each, (*at, key)) if isinstance(each, dict | list) else ()


@pytest.mark.parametrize("kind", ["gemma", "phi", "sentencepiece_chat"])
def test_no_mutation_of_a_file_ends_in_another_error(directory, kind):
    chance, folder, messages = random.Random(kind), directory(kind), []
    for file in sorted(folder.glob("*.json")):
        whole = file.read_text()
        for at in chance.sample(found := list(places(json.loads(whole))), min(len(found), 25)):
            changed = {"": json.loads(whole)}
            holder, last = changed, ""
            for key in at:
                holder, last = holder[last], key
            holder[last] = chance.choice(VALUES)
            file.write_text(json.dumps(changed[""]))
            try:
                ours = Tokenizer.open(folder)
                ours.decode(ours.encode("hello <s> 日本"), continues=True)
            except DataError as error:
                messages.append(str(error))
        file.write_text(whole)
    assert messages
    assert all(str(folder) in each or "chat template" in each for each in messages)


def test_an_empty_settings_file_is_valid(directory):
    folder = directory("gemma")
    (folder / "special_tokens_map.json").write_text("{}")
    made.settings(folder, None, bos="<bos>", eos="<eos>")
    ours = Tokenizer.open(folder)
    assert ours.template is None and ours.problems == [] and ours.bos == 2
