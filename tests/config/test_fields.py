"""A field's value is read by its type, and what is wrong with it is said, with where it is from."""

import pytest

from jaxtune.config import fields, schema, values
from jaxtune.config.load import load, parse
from jaxtune.display.escapes import shown
from tests.config.jobs import LEAST, joined, problems, refusal


def test_overrides_are_read_by_the_type_of_their_field(least):
    typed = {
        "optim.lr=3e-4": 3e-4,
        "optim.weight_decay=1": 1.0,
        "optim.clip_norm=null": None,
        "optim.rates=[('lora/.*/b', 16), ['.*', 0.5]]": (("lora/.*/b", 16.0), (".*", 0.5)),
        "steps=70": 70,
        "eval.every=None": None,
        "eval.source=['a.csv', 'b.csv']": ("a.csv", "b.csv"),
        "data.source=[ab]*.jsonl": "[ab]*.jsonl",
        "data.shuffle=False": False,
        "data.rows=1_000": 1000,
        "data.task=palette": "palette",
        "data.augment=[('crop', 0.8), ('flip', 1)]": (("crop", 0.8), ("flip", 1.0)),
        "data.columns={'theme': 'text', 'colors': 'c'}": (("colors", "c"), ("theme", "text")),
        "log.tensorboard=true": True,
        "log.wandb=null": "null",
        "schedule.name=cosine": "cosine",
        "schedule.warmup=0.06": 0.06,
        "batch.buckets=64,1024": (64, 1024),
        "trainable.targets=['(.*/)?layers/attn/q/w']": ("(.*/)?layers/attn/q/w",),
        "model.path=a=b": "a=b",
        "mesh.tensor=-1": -1,
        "mesh.fsdp=2": 2,
    }
    run = load(least, [f"--config.{text}" for text in typed])
    for text, value in typed.items():
        found = fields.at(run, text.partition("=")[0])
        assert (found, type(found)) == (value, type(value)), text


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("optim.lrr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("lr", "optim.lr"),
        ("optimizer", "optim.name"),
        ("Optim", "optim"),
        ("scheduel", "schedule"),
        ("warmup_ratio", "schedule.warmup"),
        ("optim.warmup", "schedule.warmup"),
        ("num_train_epochs", "epochs"),
        ("batch_size", "batch.rows"),
        ("batch.max_len", "batch.max_length"),
        ("gradient_accumulation_steps", "batch.accumulate"),
        ("trainable.r", "trainable.rank"),
        ("lora_alpha", "trainable.alpha"),
        ("trainable.target_modules", "trainable.targets"),
        ("max_grad_norm", "optim.clip_norm"),
        ("model.gradient_checkpointing", "model.remat"),
        ("gradient_checkpointing", "model.remat"),
        ("eval.step", "eval.every"),
        ("mesh.model", "mesh.tensor"),
        ("optimizer.lr", "optim.lr"),
    ],
)
def test_an_unknown_key_stops_with_the_nearest(key, nearest):
    problem = f"no such field; did you mean {nearest}?"
    assert problems({}, f"--config.{key}=1") == [f"{key} (command line): {problem}"]
    section, _, name = key.rpartition(".")
    if section in schema.SECTIONS:
        assert problems({section: {name: 1}}) == [f"{key} (run.py): {problem}"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("optim.lr", "3e-4"),
        ("optim.lr", -1),
        ("optim.lr", True),
        ("optim.lr", float("nan")),
        ("optim.lr", None),
        ("optim.lr", float("inf")),
        ("optim.lr", 10**400),
        ("optim.b1", 1),
        ("optim.epsilon", 0),
        ("optim.clip_norm", float("inf")),
        ("optim.name", "adam"),
        ("optim.rates", {".*": 1}),
        ("optim.rates", [(".*", -1)]),
        ("optim.decays", [(".*", 1, 2)]),
        ("trainable.targets", "mlp"),
        ("trainable.rules", [(".*", 1)]),
        ("trainable.rank", 0),
        ("batch.rows", 16.0),
        ("batch.rows", True),
        ("batch.buckets", 64),
        ("batch.buckets", [64, 0]),
        ("batch.packing", 1),
        ("steps", 10.0),
        ("epochs", 0),
        ("schedule.warmup", 1.0),
        ("schedule.warmup", -1),
        ("data.source", ["a", 1]),
        ("data.columns", {"a": 1}),
        ("data.columns", {"a": "b", 1: "c"}),
        ("model.path", 3),
        ("mesh.data", -2),
        ("model.dtype", ["auto"]),
    ],
)
def test_a_value_of_another_type_or_range_stops(key, value):
    section, _, name = key.rpartition(".")
    found = problems({section: {name: value}} if section else {name: value})
    expected = values.expected(schema.FIELDS[key])
    assert found == [f"{key} (run.py): found {shown(value)}, expected {expected}"]


@pytest.mark.parametrize(
    "override, problem",
    [
        ("optim.lr=fast", "found 'fast'"),
        ("optim.lr=", "found ''"),
        ("optim.lr=nan", "found 'nan'"),
        ("steps=1e3", "found '1e3'"),
        ("batch.rows=16.0", "found '16.0'"),
        ("batch.rows=null", "found 'null'"),
        ("batch.buckets=64", "found '64'"),
        ("optim.rates={[]: 1}", "found '{[]: 1}'"),
        ("batch.buckets=[64", "found '[64'"),
        ("data.shuffle=yes", "found 'yes'"),
        ("data.shuffle=1", "found '1'"),
        ("data.shuffle", "found no value, expected --config.data.shuffle=VALUE"),
        ("model.dtype=null", "found 'null'"),
        ("=3", "no such field; did you mean optim.lr?"),
        ("optim=sgd", "found 'sgd', but this is a section; set its fields, such as optim.name"),
    ],
)
def test_an_override_that_cannot_be_read_stops(override, problem):
    key = override.partition("=")[0] or "--config.=3"
    if key in schema.FIELDS and "VALUE" not in problem:
        problem += f", expected {values.expected(schema.FIELDS[key])}"
    assert problems({}, f"--config.{override}") == [f"{key} (command line): {problem}"]


def test_a_pattern_that_is_none_is_explained():
    (line,) = problems(dict(trainable=dict(targets=["q/w", "("])))
    assert "'(' is not a valid regular expression: missing )" in line
    assert line.endswith("expected all-linear | attention | [pattern, …]")


def test_a_long_value_is_cut():
    (line,) = problems(dict(optim=dict(lr="x" * 1000)))
    assert len(line) < 180 and "…" in line


def test_all_problems_are_listed_with_where_they_come_from():
    more = dict(optim=dict(lr="x", lrr=1), batch=3, steps=5, epochs=1)
    assert problems(more, "--config.steps=6", "--config.seed=-1", "--config.mesh.tensor=0") == [
        "optim.lr (run.py): found 'x', expected number ≥ 0 and ≤ 1,000,000; usually 1e-5 to 1e-3 "
        "with adamw",
        "optim.lrr (run.py): no such field; did you mean optim.lr?",
        "batch (run.py): found 3, but this is a section; set its fields, such as batch.rows",
        "seed (command line): found '-1', expected whole number ≥ 0 and ≤ 4,294,967,295",
        "steps (command line), epochs (run.py): both set how long to train; remove one, or set it "
        "to None; here, add --config.epochs=None",
        "mesh.tensor (command line): found 0, expected 1 or more, or -1 for all remaining devices",
    ]


def test_what_a_run_needs_is_asked_for():
    found = refusal(parse, {})
    assert "the config has 2 problems:\n  model.path (default): is required, but empty" in found
    assert "\n  data.source (default): is required, but empty" in found
    assert problems(dict(trainable=dict(kind="rules")))[0].startswith("trainable.rules (default)")
    assert problems(dict(trainable=dict(targets=[])))[0].startswith("trainable.targets (run.py)")


def test_a_default_given_is_at_odds_with_nothing():
    assert parse(joined(LEAST, dict(trainable=dict(kind="full", rank=8)))).trainable.rank == 8
