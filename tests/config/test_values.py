"""Every value of a field has a range, and what is outside it is refused before any work is done."""

import math
import re
from typing import get_args

import pytest

from jaxtune.config import schema, values
from jaxtune.config.load import parse
from tests.config.jobs import LEAST, joined, problems


def parts(kind) -> set:
    """The scalar types within a type."""
    return {kind}.union(*map(parts, get_args(kind)))


NUMERIC = [key for key, known in schema.FIELDS.items() if parts(known.type) & {int, float}]
TEXTS = [key for key, known in schema.FIELDS.items() if known.type in (str, values.Name)]
EXTREMES = (10**400, -(10**400), 10**30, 1e308, -1e308, math.inf, -math.inf, math.nan, 2**64, -3)


def within_type(key: str, value) -> object:
    """A value in the form that a field of lists or pairs takes."""
    kind = schema.FIELDS[key].type
    if get_args(kind)[1:] != (...,):
        return value
    pair = get_args(get_args(kind)[0])
    return [["flip" if key == "data.augment" else ".*", value]] if pair else [value]


def changed(key: str, value) -> dict:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def test_every_number_has_a_range():
    assert len(NUMERIC) == 45
    for key in NUMERIC:
        limits = schema.FIELDS[key].metadata
        assert limits.keys() & {"least", "above"} and limits.keys() & {"most", "below"}, key
        low = limits.get("least", limits.get("above"))
        assert low < limits["most"] <= 2**32, key


@pytest.mark.parametrize("key", NUMERIC)
def test_an_extreme_number_is_refused_with_the_range(key):
    expected = values.expected(schema.FIELDS[key])
    for value in EXTREMES:
        (line,) = problems(changed(key, within_type(key, value)))
        assert line.startswith(f"{key} (run.py): found ") and line.endswith(f"expected {expected}")
        assert len(line) < 400
    assert "≤" in expected


@pytest.mark.parametrize(
    "key, value",
    [
        ("steps", 3_000_000_000),
        ("seed", 2**63),
        ("batch.rows", 10**12),
        ("trainable.rank", 10**7),
        ("epochs", 1e308),
        ("optim.lr", 1e40),
        ("optim.b1", 1 - 1e-12),  # 1 in float32, by which the bias correction would divide
        ("trainable.dropout", 1 - 1e-12),
        ("generate.top_p", 1.5),
    ],
)
def test_what_ended_in_tracebacks_is_refused(key, value):
    (line,) = problems(changed(key, value))
    assert re.fullmatch(rf"{key} \(run\.py\): found \S+, expected (whole )?number .*", line)


def test_the_usual_values_are_told():
    (line,) = problems(dict(optim=dict(lr=1e40)))
    assert line.endswith("expected number ≥ 0 and ≤ 1,000,000; usually 1e-5 to 1e-3 with adamw")


def test_the_limits_themselves_are_allowed():
    run = parse(joined(LEAST, dict(steps=10**9, seed=2**32 - 1, optim=dict(lr=1e6))))
    assert (run.steps, run.seed, run.optim.lr) == (10**9, 2**32 - 1, 1e6)


@pytest.mark.parametrize("key", TEXTS)
def test_texts_that_no_file_can_hold_are_refused(key):
    for value, reason in (
        ("a\0b", "it contains a null character"),
        ("a\ud800b", "it contains a lone surrogate"),
        ("x" * 200_000, "200,000 characters, at most"),
    ):
        (line,) = problems(changed(key, value))
        assert line.startswith(f"{key} (run.py): found ") and reason in line and len(line) < 300


@pytest.mark.parametrize("key", ["log.wandb", "hub.repo", "data.split", "checkpoint.metric"])
def test_a_name_is_of_one_line(key):
    for value, control in (("a\nb", r"\n"), ("a\x1b[2Jb", r"\x1b"), ("\x9b", r"\x9b")):
        lines = problems(changed(key, value))
        assert f"it contains the control character {control}" in lines[0]
        assert "\x1b" not in lines[0] and "\n" not in lines[0]


def test_templates_keep_their_lines():
    run = parse(joined(LEAST, dict(data=dict(prefix="a\n\tb {x}"))))
    assert run.data.prefix == "a\n\tb {x}"


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("data.source", ["a"] * 10_001, "10,001 entries, at most 10,000 are allowed"),
        ("data.source", ["a\0"], "it contains a null character"),
        ("trainable.targets", ["(" * 5000 + ")" * 5000], "is nested too deeply"),
        ("trainable.targets", ["a{99999999999999}"], "the repetition number is too large"),
        ("trainable.targets", ["a" * 10_001], "10,001 characters, at most 10,000"),
        ("optim.rates", [[["x"]]], "expected [(pattern, number"),
        ("optim.rates", {"a": {"b": 1}}, "expected [(pattern, number"),
        ("data.columns", {"a": ["b"]}, "expected [(text, text), …]"),
    ],
)
def test_lists_and_patterns_are_bounded(key, value, reason):
    (line,) = problems(changed(key, value))
    assert reason in line and len(line) < 350


def test_a_value_nested_deeply_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    (line,) = problems(dict(steps=deep))
    assert line.startswith("steps (run.py): found [[[[[[[…]]]]]]], expected whole number")


@pytest.mark.parametrize("text", ["-" * 100_000 + "1", "[" * 100_000, "[1," * 50_000, "9" * 5000])
def test_absurd_text_of_an_override_is_refused(text):
    for key in ("steps", "batch.buckets"):
        (line,) = problems({}, f"--config.{key}={text}")
        assert line.startswith(f"{key} (command line): found '") and len(line) < 300


def test_long_keys_and_many_problems_are_cut():
    (line,) = problems(dict(optim={"x" * 10_000: 1}))
    assert len(line) < 200 and "xxx… (run.py): no such field; did you mean" in line
    (line,) = problems(dict(optim={"l\n\x1b[2J": 1}))
    assert line.startswith(r"optim.l\n\x1b[2J (run.py): no such field")


def test_of_many_problems_the_first_are_listed():
    from tests.config.jobs import refusal

    found = refusal(parse, {f"key{number}": 1 for number in range(100_000)})
    assert found.startswith("the config has more than 30 problems:\n") and found.count("\n") == 30


def test_a_conflict_of_the_command_line_with_the_file_tells_the_way_out():
    (line,) = problems(dict(epochs=1), "--config.steps=3")
    assert line.startswith("steps (command line), epochs (run.py): both set how long to train")
    assert line.endswith("; here, add --config.epochs=None")
    (line,) = problems(dict(steps=1, epochs=1))
    assert "--config" not in line
